/**
 * The only file (with installed.ts and watch.ts) that changes the host: applies a plan, takes it down, and undoes what it
 * did when a step fails. Order: look, then the empty table as a claim, routes, policy rules, and at last everything in the table in one
 * batch; removal in reverse. So at no moment is a packet marked that the routing does not know what to do with.
 */
import { EventEmitter } from 'node:events';
import { setTimeout as startTimer } from 'node:timers';
import { setTimeout as sleep } from 'node:timers/promises';
import { closedSocket, type InstallStep, InterceptError, NetlinkError } from '../errors.js';
import { NftablesSocket } from '../netlink/nftables.js';
import { RouteSocket } from '../netlink/route.js';
import { sequence } from '../netlink/sequence.js';
import type { NftOperation, Route, RouteOperation, Rule } from '../netlink/types.js';
import { backendOf, unmakeMangle } from './backend.js';
import { type Counters, sumCounters } from './counters.js';
import {
  claimOf,
  completeOptions,
  type HostState,
  isClaimed,
  type Kernel,
  lookAtHost,
  staleNames,
  staleRoutes,
  staleRules,
} from './host.js';
import { findRoutingLosses } from './intact.js';
import { mangleChanges } from './mangle.js';
import { announceMark, namespaceOf } from './marks.js';
import { ruleChanges, tableObject } from './nftables.js';
import { type Plan, type PlanOptions, planIntercept, withOnDown, withSets } from './plan.js';
import { type LiveSets, liveSets, type Rewrite } from './sets.js';
import { Watch, type WatchEvents } from './watch.js';

export interface InstallOptions extends PlanOptions {
  /** Path of the network namespace to install in, e.g. /run/netns/router. */
  readonly netns?: string;
}

/**
 * What is installed. Emits `repaired` (RepairReport) when somebody else had changed it, and `error` (InterceptError) when
 * that cannot be repaired, or is changed again and again; without a listener for it that is a process warning.
 */
export interface InstalledRules extends EventEmitter<WatchEvents>, LiveSets {
  /** As installed; `setOnDown` changes it, the live sets do not. */
  readonly plan: Plan;
  /** Another `onDown`, at once, in one atomic batch: no packet meets a rule set in between, and no counter begins anew. */
  setOnDown(onDown: Plan['onDown']): Promise<void>;
  /** What the rules have counted since they were installed. */
  counters(): Promise<Counters>;
  /** Whether all of it is still there; what is not, in words. */
  verify(): Promise<{ readonly intact: boolean; readonly missing: readonly string[] }>;
  /** Takes everything down again. What somebody else has removed already is no error. After a failure it may be tried again. */
  uninstall(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** How often to begin anew when somebody else changed the host between our look at it and our change. */
const ATTEMPTS = 50;

/** A look and a change that belong together, again where somebody else came between them. */
export async function untilQuiet<T>(lookAndChange: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await lookAndChange();
    } catch (error) {
      if (attempt === ATTEMPTS || !isRace(error)) throw error;
      // Several who get into each other's way part by waiting unequally long.
      await sleep(Math.random() * Math.min(attempt, 20));
    }
  }
}

/**
 * Makes the host deliver matching traffic to a proxy that listens on `port`, whoever that proxy is.
 * Equivalent to: the commands that `String(planIntercept(options))` prints, with mark, table and priority chosen free.
 * Needs CAP_NET_ADMIN in the namespace. With `lifetime: 'process'` the table goes when this process ends, however it ends.
 *
 * @throws {TypeError | RangeError} options that cannot be meant
 * @throws {InterceptError} something is in use or missing; the host is as it was
 * @throws {NetlinkError} the kernel refused; the host is as it was
 */
export async function installIntercept(options: InstallOptions): Promise<InstalledRules> {
  const { netns, ...planOptions } = options;
  planIntercept(planOptions);
  const kernel = openKernel(netns);
  try {
    return await untilQuiet(async () => {
      const { plan, host } = await choose(kernel, planOptions);
      const removal = await apply(kernel, plan, host);
      return installed(kernel, plan, removal, announceMark(netns, plan.socketMark), options.repair ?? true);
    });
  } catch (error) {
    // What could not be undone the kernel deletes then.
    await close(kernel);
    throw error;
  }
}

/**
 * Sockets that nobody uses, for a while: one to nf_tables that is closed right after a deletion keeps the rule set locked
 * until the kernel has cleared away what was deleted, some 10 to 20 ms.
 */
const idle = new Map<Kernel, NodeJS.Timeout>();
const IDLE_MS = 100;

export function openKernel(netns: string | undefined): Kernel {
  const namespace = `${netns} ${namespaceOf(netns)}`;
  for (const [kernel, timer] of idle)
    if (kernel.namespace === namespace) {
      clearTimeout(timer);
      idle.delete(kernel);
      return kernel;
    }
  const route = new RouteSocket({ ...(netns !== undefined && { netns }) });
  try {
    return { namespace, route, nftables: new NftablesSocket({ ...(netns !== undefined && { netns }) }) };
  } catch (error) {
    void route.close();
    throw error;
  }
}

/** Once nothing belongs to it any more. */
export function closeKernel(kernel: Kernel): void {
  const later = () => {
    idle.delete(kernel);
    void close(kernel);
  };
  idle.set(kernel, startTimer(later, IDLE_MS).unref());
}

const close = ({ route, nftables }: Kernel) => Promise.all([route.close(), nftables.close()]);

/** Looks at the host, clears away what a killed process of ours left, and plans with what is free. */
async function choose(kernel: Kernel, options: PlanOptions): Promise<{ plan: Plan; host: HostState }> {
  let host = await lookAtHost(kernel);
  const stale = staleRules(host);
  const routes = await staleRoutes(kernel, host, stale, planIntercept(options).table);
  const names = staleNames(host);
  if (stale.length + routes.length + names.length > 0) {
    await reap(kernel, { names, rules: stale, routes });
    host = await lookAtHost(kernel);
  }
  return { plan: planIntercept(await completeOptions(kernel, host, options)), host };
}

/**
 * Removes what killed processes have left, each only if nobody has claimed it by now: another process may have reaped it
 * before, and have put the very same rule into its place.
 */
export async function reap(
  kernel: Kernel,
  { names, rules, routes }: { names: readonly string[]; rules: readonly Rule[]; routes: readonly Route[] },
): Promise<void> {
  const { route, nftables } = kernel;
  for (const name of names)
    if (staleNames(await lookAtHost(kernel)).includes(name)) await takeOut(kernel, await unmakeMangle(kernel, name));
  const claims = async () => (await nftables.list('table')).flatMap(claimOf);
  for (const rule of rules) if (!isClaimed(await claims(), rule)) await ignoring(['ENOENT'], route.ruleDelete(rule));
  for (const each of routes)
    if (!(await claims()).some(({ table }) => table === each.table))
      await ignoring(['ESRCH', 'ENOENT'], route.routeDelete(each));
}

/** What is gone already is no error, nor what somebody else has begun to use. */
export async function takeOut({ nftables }: Kernel, batches: readonly NftOperation[][]): Promise<void> {
  for (const batch of batches) await ignoring(['ENOENT', 'EBUSY'], nftables.commit(batch));
}

/**
 * The empty table, if what the plan takes is still free. Normally the rule set's generation tells: nothing at all has
 * changed since we looked. Where somebody changes it all the time, we claim first and look then; of two who claimed the same,
 * the older claim holds.
 */
async function claim(kernel: Kernel, plan: Plan, { generation }: HostState): Promise<void> {
  const table = tableObject(plan);
  const create: NftOperation[] = [{ verb: 'create', object: table }];
  try {
    await kernel.nftables.commit(create, { generation });
  } catch (changed) {
    if (!(changed instanceof NetlinkError && changed.code === 'ERESTART')) throw changed;
    await kernel.nftables.commit(create);
    const host = await lookAtHost(kernel);
    const ours = host.tables.find(({ family, name }) => family === table.family && name === table.name);
    const tables = host.tables.filter(({ handle = 0n }) => handle < (ours?.handle ?? 0n));
    try {
      const { fwmark, table: number, priority } = plan;
      const taken = { port: plan.port, name: plan.name, families: plan.families, fwmark, table: number, priority };
      await completeOptions(kernel, { ...host, tables, claims: tables.flatMap(claimOf) }, taken);
    } catch {
      await kernel.nftables.commit([{ verb: 'delete', object: table }]);
      throw changed;
    }
  }
}

/** How what is installed goes again when nobody can look at it any more. */
interface Removal {
  /** Batches that leave the claim. */
  readonly batches: NftOperation[][];
  readonly endGuard: EndGuard;
}

async function apply(kernel: Kernel, plan: Plan, host: HostState): Promise<Removal> {
  const { route, nftables } = kernel;
  const { frame, make, unmake } = backendOf(plan);
  const table = tableObject(plan);
  const undo: (() => Promise<unknown>)[] = [];
  /** What failed may have happened all the same (its answer was lost), so it is undone too, unless it surely has not. */
  const step = async (name: InstallStep, doIt: Promise<void>, undoIt: (failure?: unknown) => Promise<unknown>) => {
    undo.push(undoIt);
    try {
      await doIt;
    } catch (error) {
      undo.pop();
      if (isOfMany(name) || !isRefused(error)) undo.push(() => undoIt(error));
      throw atStep(name, error);
    }
  };
  const added = changesOf('add', plan);
  const removed = changesOf('delete', plan);
  try {
    // The kernel is not asked beforehand whether it can do all of it: to take back a batch takes it 10 ms.
    const first = await frame(kernel, plan);
    const takeOutAll = async () => takeOut(kernel, await unmake(kernel, plan, table));
    await step('table', claim(kernel, plan, host), () => nftables.commit([{ verb: 'delete', object: table }]));
    if (first.length > 0) await step('table', nftables.commit(first), takeOutAll);
    const removal = await removalOf(kernel, plan);
    undo.push(async () => removal.endGuard());
    const calls = sequence(() => [route.commit(added.routes), route.commit(added.rules), nftables.commit(make(plan))]);
    for (const each of calls) each.catch(() => {}); // told here, one after the other
    await step('routes', calls[0], (failure) => route.commit(ours(removed.routes, failure)));
    await step('rules', calls[1], (failure) => route.commit(ours(removed.rules, failure)));
    await step('batch', calls[2], takeOutAll);
    return removal;
  } catch (error) {
    for (const undoIt of undo.reverse()) await undoIt().catch(() => {});
    throw error;
  }
}

/** Each of them fails for itself. */
const isOfMany = (step: InstallStep) => step === 'routes' || step === 'rules';
const isRefused = (error: unknown) => error instanceof NetlinkError && ['EEXIST', 'ERESTART'].includes(error.code);

const changesOf = (verb: RouteOperation['verb'], { rules, routes }: Pick<Plan, 'rules' | 'routes'>) => ({
  rules: rules.map((rule): RouteOperation => ({ verb, kind: 'rule', rule })),
  routes: routes.map((route): RouteOperation => ({ verb, kind: 'route', route })),
});

/** Without those that were there before: they are somebody else's. */
function ours(removed: readonly RouteOperation[], failure: unknown): RouteOperation[] {
  const errors = (failure instanceof NetlinkError && failure.errors) || [];
  return removed.filter((_, at) => !errors.some(({ index, code }) => index === at && code === 'EEXIST')).reverse();
}

/** Of what is there now, with a guard that begins its life. */
async function removalOf(kernel: Kernel, plan: Plan): Promise<Removal> {
  const { unmake, outlives } = backendOf(plan);
  const batches = await unmake(kernel, plan, tableObject(plan));
  return { batches, endGuard: startGuard(kernel.route, plan, outlives ? batches : []) };
}

type EndGuard = ReturnType<RouteSocket['guard']>;
/** The table dies with this process by itself. A guard sees to it that the rest does, too. */
function startGuard(route: RouteSocket, plan: Plan, batches: readonly NftOperation[][]): EndGuard {
  if (plan.lifetime !== 'process' || plan.rules.length === 0) return () => {};
  try {
    return route.guard([...plan.rules].reverse(), [...plan.routes].reverse(), batches);
  } catch (error) {
    // It is a net for the case of a crash, and what is left then does nothing: no reason to refuse.
    process.emitWarning(
      `Policy rules and routes will stay behind if this process is killed, until the next start: ${(error as Error).message}`,
      { code: 'LINUX_TPROXY_NO_GUARD' },
    );
    return () => {};
  }
}

function installed(
  kernel: Kernel,
  initial: Plan,
  initialRemoval: Removal,
  forgetMark: () => void,
  repair: boolean,
): InstalledRules {
  const { route, nftables } = kernel;
  const backend = backendOf(initial);
  let plan = initial;
  let removal = initialRemoval;
  /** With what is in its sets, where those are rules. */
  let present = initial;
  let changing: Promise<void> = Promise.resolve();
  let over = false;
  /** The sockets may be somebody else's by then. */
  const checkOver = () => {
    if (over) throw closedSocket();
  };
  const table = tableObject(plan);
  const ofTable = { family: table.family, table: table.name };
  const remove: NftOperation[] = [{ verb: 'delete', object: table }];
  const { live, contents } = liveSets(
    plan,
    async (operations) => {
      checkOver();
      await nftables.commit(operations);
    },
    plan.backend === 'iptables' ? (sets) => inTurn(() => rewrite(sets)) : undefined,
  );
  /** Rules made anew are other ones. */
  const rebuilt = async () => {
    if (!backend.outlives) return;
    const { endGuard } = removal;
    removal = await removalOf(kernel, plan);
    endGuard();
  };
  const watch = repair ? new Watch(kernel, () => present, contents, rebuilt) : undefined;
  let uninstalling: Promise<void> | undefined;

  /** While nobody compares what is there with what should be, and one after the other. */
  const inTurn = (change: () => Promise<void>): Promise<void> => {
    const turn = changing.then(() => {
      checkOver();
      return watch ? watch.between(change) : change();
    });
    changing = turn.catch(() => {});
    return turn;
  };
  const rewrite = async (sets: Parameters<Rewrite>[0]) => {
    const next = withSets(present, sets);
    const operations = mangleChanges(present, next);
    if (operations.length > 0) await nftables.commit(operations);
    present = next;
  };

  const { rules, routes } = changesOf('delete', plan);
  const removed = { rules: rules.reverse(), routes: routes.reverse() };
  // Reverse of apply: the marks stop first, then the rules that read them, then the routes, and the claim last: until then
  // nobody takes what we have not removed yet for left over, or for free. One failure does not keep the others.
  const uninstall = async () => {
    await watch?.stop();
    try {
      await takeOut(kernel, await backend.unmake(kernel, plan, table));
    } catch (error) {
      if (plan.lifetime !== 'process' || !(error instanceof NetlinkError && error.code === 'EPERM')) throw error;
      // This process has given up its privileges since. The table goes with its socket, and the guard has kept its own.
      ended();
      await close(kernel);
      removal.endGuard('work');
      return;
    }
    const failures: unknown[] = [];
    const attempt = (removed: Promise<void>) =>
      ignoring(['ENOENT', 'ESRCH'], removed).catch((error) => failures.push(error));
    await attempt(route.commit(removed.rules));
    await attempt(route.commit(removed.routes));
    if (failures.length > 0) throw failures[0];
    await ignoring(['ENOENT'], nftables.commit(remove));
    // If any of it failed, the guard tries once more in the end.
    removal.endGuard();
    ended();
    closeKernel(kernel);
  };
  const ended = () => {
    over = true;
    atExit.delete(uninstallNow);
    forgetMark();
  };
  const uninstallNow = () => {
    void watch?.stop();
    let failed = false;
    const attempt = (what: () => void) => {
      try {
        what();
      } catch {
        // The process ends: nobody is left to tell. The guard tries once more, and the next start reaps.
        failed = true;
      }
    };
    for (const batch of removal.batches) attempt(() => nftables.commitSync(batch));
    attempt(() => route.commitSync(removed.rules));
    attempt(() => route.commitSync(removed.routes));
    attempt(() => nftables.commitSync(remove));
    if (!failed) removal.endGuard();
  };
  if (plan.lifetime === 'process') onExit(uninstallNow);

  const switchOnDown = async (onDown: Plan['onDown']) => {
    const next = withOnDown(plan, onDown);
    await untilQuiet(async () => {
      const { id: generation } = await nftables.generation();
      const operations = ruleChanges(plan, next, await nftables.list('rule', ofTable));
      if (operations.length > 0) await nftables.commit(operations, { generation });
    });
    plan = next;
    present = withOnDown(present, onDown);
  };

  const methods = {
    ...live,
    setOnDown(onDown: Plan['onDown']) {
      return inTurn(() => switchOnDown(onDown));
    },
    async counters() {
      checkOver();
      return sumCounters(await backend.rules(kernel, plan), backend.commentOf);
    },
    async verify() {
      checkOver();
      const losses = await Promise.all([findRoutingLosses(kernel, present), backend.losses(kernel, present)]);
      const missing = losses.flat().map(({ what }) => what);
      return { intact: missing.length === 0, missing };
    },
    uninstall() {
      uninstalling ??= uninstall().catch((error) => {
        uninstalling = undefined;
        throw error;
      });
      return uninstalling;
    },
    [Symbol.asyncDispose]: () => methods.uninstall(),
  };
  const result = Object.defineProperty(Object.assign(new EventEmitter<WatchEvents>(), methods), 'plan', {
    get: () => plan,
    enumerable: true,
  }) as unknown as InstalledRules;
  watch?.on('repaired', (report) => result.emit('repaired', report));
  watch?.on('error', (error) => {
    if (result.listenerCount('error') > 0) result.emit('error', error);
    else process.emitWarning(error);
  });
  return result;
}

/** What is still installed when the process ends in good order; one listener for however many there are. */
const atExit = new Set<() => void>();
let listening = false;
function onExit(task: () => void): void {
  atExit.add(task);
  if (listening) return;
  listening = true;
  process.once('exit', () => {
    for (const each of atExit) each();
  });
}

/** Somebody took what we had found free, or changed the rule set meanwhile: look again. */
function isRace(error: unknown): boolean {
  const cause = error instanceof InterceptError ? error.cause : error;
  return cause instanceof NetlinkError && ['EEXIST', 'ERESTART', 'EINTR', 'ENOBUFS'].includes(cause.code);
}

function atStep(step: InstallStep, error: unknown): unknown {
  if (!(error instanceof NetlinkError)) return error;
  return new InterceptError(
    'ERR_TPROXY_INSTALL',
    `Installing the interception failed at step '${step}', and what had been done is undone: ${error.message}`,
    step,
    error,
  );
}

export async function ignoring(codes: readonly string[], attempt: Promise<void>): Promise<void> {
  await attempt.catch((error) => {
    if (!(error instanceof NetlinkError && [error, ...(error.errors ?? [])].every(({ code }) => codes.includes(code))))
      throw error;
  });
}
