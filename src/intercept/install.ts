/**
 * The only file (with handover.ts, installed.ts and watch.ts) that changes the host: applies a plan, takes it down, and undoes what it
 * did when a step fails. Order: look, then the empty table as a claim, routes, policy rules, and at last everything in the table in one
 * batch; removal in reverse. So at no moment is a packet marked that the routing does not know what to do with.
 */
import { EventEmitter } from 'node:events';
import { setTimeout as startTimer } from 'node:timers';
import { closedSocket, type InstallStep, NetlinkError } from '../errors.js';
import { NftablesSocket } from '../netlink/nftables.js';
import { RouteSocket } from '../netlink/route.js';
import { sequence } from '../netlink/sequence.js';
import type { NftOperation, Route, RouteOperation, Rule } from '../netlink/types.js';
import { atStep, ignoring, untilQuiet } from './attempt.js';
import { backendOf, unmakeMangle } from './backend.js';
import { type Content, tableWith } from './contents.js';
import { type Counters, sumCounters } from './counters.js';
import { Guarding } from './guard.js';
import { askFor, handOver, hearRequests, takeOver } from './handover.js';
import {
  claimOf,
  completeOptions,
  type HostState,
  isClaimed,
  type Kernel,
  lookAtHost,
  type Predecessor,
  predecessorOf,
  staleNames,
  staleRoutes,
  staleRules,
} from './host.js';
import { findRoutingLosses } from './intact.js';
import { mangleChanges, namesInMangle } from './mangle.js';
import { announceMark, namespaceOf } from './marks.js';
import { ruleChanges, tableObject } from './nftables.js';
import { type Owner, ownerOf } from './owner.js';
import { type Plan, type PlanOptions, planIntercept, withOnDown, withSets } from './plan.js';
import { type LiveSets, liveSets, type Rewrite } from './sets.js';
import { Watch, type WatchEvents } from './watch.js';

export interface InstallOptions extends PlanOptions {
  /** Path of the network namespace to install in, e.g. /run/netns/router. */
  readonly netns?: string;
}

/**
 * What is installed. Emits `repaired` (RepairReport) when somebody else had changed it, and `error` (InterceptError) when
 * that cannot be repaired, or is changed again and again; without a listener for it that is a process warning. And `handover`
 * (Owner) when another process has taken it over (`lifetime: 'persist'`): it is that one's now, and nothing of this process;
 * `uninstalled` (ChangedBy) when somebody has taken it down on purpose.
 */
export interface InstalledRules extends EventEmitter<InstalledEvents>, LiveSets {
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
  /**
   * Lets go of it. With `lifetime: 'persist'` the rules stay in force for `graceMs`, or until a process that installs the same
   * `name` takes them over; with `permanent` they stay, and are not repaired any more; with `process` it is `uninstall`.
   */
  release(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface InstalledEvents extends WatchEvents {
  handover: [successor: Owner];
}

/**
 * Makes the host deliver matching traffic to a proxy that listens on `port`, whoever that proxy is.
 * Equivalent to: the commands that `String(planIntercept(options))` prints, with mark, table and priority chosen free.
 * Needs CAP_NET_ADMIN in the namespace. With `lifetime: 'process'` the table goes when this process ends, however it ends.
 * With `lifetime: 'persist'` it takes over what a process of the same `name` has left, or hands over when it is asked; who
 * calls this must listen already, on another port, if the other one still does.
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
      const { plan, host, predecessor } = await choose(kernel, planOptions);
      const guarding = new Guarding(kernel, plan);
      const kept = predecessor
        ? await takeOver(kernel, plan, predecessor, guarding)
        : await apply(kernel, plan, host, guarding);
      return installed({ kernel, plan, netns, guarding, kept, repair: options.repair ?? true });
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
  const route = new RouteSocket(socketOptions(netns));
  try {
    return { namespace, route, nftables: new NftablesSocket(socketOptions(netns)) };
  } catch (error) {
    void route.close();
    throw error;
  }
}

const socketOptions = (netns: string | undefined) => ({ ...(netns !== undefined && { netns }) });

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
async function choose(
  kernel: Kernel,
  options: PlanOptions,
): Promise<{ plan: Plan; host: HostState; predecessor: Predecessor | undefined }> {
  const { nftTable, table, lifetime } = planIntercept(options);
  let host = await clearAway(kernel, table);
  const find = () => (lifetime === 'persist' ? predecessorOf(host, nftTable) : undefined);
  let predecessor = find();
  if (predecessor?.table.owner !== undefined) {
    await askFor(kernel, predecessor.table);
    host = await lookAtHost(kernel, table);
    predecessor = find();
  }
  return { plan: planIntercept(await completeOptions(kernel, host, options, predecessor)), host, predecessor };
}

/** Gives the host without what is left over in it. */
async function clearAway(kernel: Kernel, table: number): Promise<HostState> {
  const host = await lookAtHost(kernel, table);
  const stale = staleRules(host);
  const routes = await staleRoutes(kernel, host, stale);
  const names = staleNames(host);
  if (stale.length + routes.length + names.length === 0) return host;
  await reap(kernel, { names, rules: stale, routes });
  return lookAtHost(kernel, table);
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
  for (const name of names) {
    const [chains, tables] = await Promise.all(sequence(() => [nftables.list('chain'), nftables.list('table')]));
    if (staleNames({ inMangle: namesInMangle(chains), tables }).includes(name))
      await takeOut(kernel, await unmakeMangle(kernel, name));
  }
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
    const host = await lookAtHost(kernel, plan.table);
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

/** What its sets had in them before: nothing. */
async function apply(kernel: Kernel, plan: Plan, host: HostState, guarding: Guarding): Promise<[]> {
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
    await guarding.renew();
    undo.push(async () => guarding.end());
    const calls = sequence(() => [route.commit(added.routes), route.commit(added.rules), nftables.commit(make(plan))]);
    for (const each of calls) each.catch(() => {}); // told here, one after the other
    await step('routes', calls[0], (failure) => route.commit(ours(removed.routes, failure)));
    await step('rules', calls[1], (failure) => route.commit(ours(removed.rules, failure)));
    await step('batch', calls[2], takeOutAll);
    return [];
  } catch (error) {
    for (const undoIt of undo.reverse()) await undoIt().catch(() => {});
    throw error;
  }
}

/** Each of them fails for itself. */
const isOfMany = (step: InstallStep) => step === 'routes' || step === 'rules';
const isRefused = (error: unknown) => error instanceof NetlinkError && ['EEXIST', 'ERESTART'].includes(error.code);

const changesOf = (verb: 'add' | 'delete', { rules, routes }: Pick<Plan, 'rules' | 'routes'>) => ({
  rules: rules.map((rule): RouteOperation => ({ verb, kind: 'rule', rule })),
  routes: routes.map((route): RouteOperation => ({ verb, kind: 'route', route })),
});

/** Without those that were there before: they are somebody else's. */
function ours(removed: readonly RouteOperation[], failure: unknown): RouteOperation[] {
  const errors = (failure instanceof NetlinkError && failure.errors) || [];
  return removed.filter((_, at) => !errors.some(({ index, code }) => index === at && code === 'EEXIST')).reverse();
}

interface Installation {
  readonly kernel: Kernel;
  readonly plan: Plan;
  readonly netns: string | undefined;
  readonly guarding: Guarding;
  readonly kept: readonly Content[];
  readonly repair: boolean;
}

function installed({ kernel, plan: initial, netns, guarding, kept, repair }: Installation): InstalledRules {
  const backend = backendOf(initial);
  let plan = initial;
  /** With what is in its sets, where those are rules. */
  let present = initial;
  let changing: Promise<void> = Promise.resolve();
  const table = tableObject(plan);
  const ofTable = { family: table.family, table: table.name };
  const remove: NftOperation[] = [{ verb: 'delete', object: table }];
  const { live, contents } = liveSets(
    plan,
    kept,
    async (operations) => {
      checkOurs();
      await kernel.nftables.commit(operations);
    },
    plan.backend === 'iptables' ? (sets) => inTurn(() => rewrite(sets)) : undefined,
  );
  const forgetMark = announceMark(netns, plan.socketMark);
  let isOurs = true;
  /** The sockets may be somebody else's by then. */
  const checkOurs = () => {
    if (!isOurs) throw closedSocket();
  };
  let watch: Watch | undefined;
  let endHearing: (() => void) | undefined;
  let handingOver: Promise<void> | undefined;
  let ending: Promise<void> | undefined;

  const begin = () => {
    if (repair) {
      watch = new Watch(kernel, () => present, contents, guarding);
      watch.on('repaired', (report) => result.emit('repaired', report));
      watch.on('error', tell);
      watch.on('uninstalled', (by) => {
        end(letGone).then(() => result.emit('uninstalled', by), tell);
      });
    }
    if (plan.lifetime === 'persist')
      endHearing = hearRequests(kernel.nftables, table, () => {
        if (!ending) handingOver ??= giveAway().catch(tell);
      });
  };
  const pause = async () => {
    endHearing?.();
    await watch?.stop();
    watch = undefined;
  };
  const tell = (error: Error) => {
    if (result.listenerCount('error') > 0) result.emit('error', error);
    else process.emitWarning(error);
  };

  const giveAway = async () => {
    await pause();
    const successor = await handOver(kernel, table, {
      open: () => new NftablesSocket(socketOptions(netns)),
      remake: () => tableWith(plan, contents()),
    });
    if (successor !== undefined) {
      isOurs = false;
      guarding.end();
      await close(kernel);
      result.emit('handover', ownerOf(successor));
    } else {
      // The guard knows the table by its owner's socket.
      await guarding.renew();
      handingOver = undefined;
      begin();
    }
  };

  const { rules, routes } = changesOf('delete', plan);
  const removed = { rules: rules.reverse(), routes: routes.reverse() };
  // Reverse of apply: the marks stop first, then the rules that read them, then the routes, and the claim last: until then
  // nobody takes what we have not removed yet for left over, or for free.
  const takeDown = async () => {
    const { route, nftables } = kernel;
    const batches = await backend.unmake(kernel, plan, table);
    const calls = () => [
      ...batches.map((batch) => nftables.commit(batch)),
      route.commit(removed.rules),
      route.commit(removed.routes),
      nftables.commit(remove),
    ];
    // In one go, of which nothing behind a failure is done. Where something is gone already, or somebody else's, step by step.
    let whole = false;
    const all = Promise.all(sequence(calls)).then(() => {
      whole = true;
    });
    await ignoring(['ENOENT', 'ESRCH', 'EBUSY'], all);
    if (!whole) await takeDownByStep();
  };
  /** One failure does not keep the others. */
  const takeDownByStep = async () => {
    const { route, nftables } = kernel;
    await takeOut(kernel, await backend.unmake(kernel, plan, table));
    const failures: unknown[] = [];
    const attempt = (removed: Promise<void>) =>
      ignoring(['ENOENT', 'ESRCH'], removed).catch((error) => failures.push(error));
    await attempt(route.commit(removed.rules));
    await attempt(route.commit(removed.routes));
    if (failures.length > 0) throw failures[0];
    await ignoring(['ENOENT'], nftables.commit(remove));
  };
  const uninstall = async () => {
    await pause();
    try {
      await takeDown();
    } catch (error) {
      if (plan.lifetime !== 'process' || !(error instanceof NetlinkError && error.code === 'EPERM')) throw error;
      // This process has given up its privileges since. The table goes with its socket, and the guard has kept its own.
      atExit.delete(uninstallNow);
      await close(kernel);
      guarding.release();
      return;
    }
    atExit.delete(uninstallNow);
    // If any of it failed, the guard tries once more in the end.
    guarding.end();
    closeKernel(kernel);
  };
  const uninstallNow = () => {
    void pause();
    const { route, nftables } = kernel;
    let failed = false;
    const attempt = (what: () => void) => {
      try {
        what();
      } catch {
        // The process ends: nobody is left to tell. The guard tries once more, and the next start reaps.
        failed = true;
      }
    };
    for (const batch of guarding.batches) attempt(() => nftables.commitSync(batch));
    attempt(() => route.commitSync(removed.rules));
    attempt(() => route.commitSync(removed.routes));
    attempt(() => nftables.commitSync(remove));
    if (!failed) guarding.end();
  };
  if (plan.lifetime === 'process') onExit(uninstallNow);

  const release = async () => {
    await pause();
    await kernel.nftables.generation().catch(() => {}); // what was asked of it before has been done
    await close(kernel);
    guarding.release();
  };

  /** Somebody has taken it down: of ours is only what we have repaired in that moment. */
  const letGone = async () => {
    await pause();
    await clearAway(kernel, plan.table);
    guarding.end();
    closeKernel(kernel);
  };

  /** Once; and after a failure again. */
  const end = (how: () => Promise<void>) => {
    ending ??= (async () => {
      await handingOver;
      if (isOurs) await how();
      isOurs = false;
      forgetMark();
    })().catch((error) => {
      ending = undefined;
      throw error;
    });
    return ending;
  };

  const switchOnDown = async (onDown: Plan['onDown']) => {
    const next = withOnDown(plan, onDown);
    await untilQuiet(async () => {
      const { id: generation } = await kernel.nftables.generation();
      const operations = ruleChanges(plan, next, await kernel.nftables.list('rule', ofTable));
      if (operations.length > 0) await kernel.nftables.commit(operations, { generation });
    });
    plan = next;
    present = withOnDown(present, onDown);
  };

  /** While nobody compares what is there with what should be, and one after the other. */
  const inTurn = (change: () => Promise<void>): Promise<void> => {
    const turn = changing.then(() => {
      checkOurs();
      return watch ? watch.between(change) : change();
    });
    changing = turn.catch(() => {});
    return turn;
  };
  const rewrite = async (sets: Parameters<Rewrite>[0]) => {
    const next = withSets(present, sets);
    const operations = mangleChanges(present, next);
    if (operations.length > 0) await kernel.nftables.commit(operations);
    present = next;
  };

  const methods = {
    ...live,
    setOnDown: (onDown: Plan['onDown']) => inTurn(() => switchOnDown(onDown)),
    async counters() {
      checkOurs();
      return sumCounters(await backend.rules(kernel, plan), backend.commentOf);
    },
    async verify() {
      checkOurs();
      const losses = await Promise.all([findRoutingLosses(kernel, present), backend.losses(kernel, present)]);
      const missing = losses.flat().map(({ what }) => what);
      return { intact: missing.length === 0, missing };
    },
    uninstall: () => end(uninstall),
    release: () => end(plan.lifetime === 'process' ? uninstall : release),
    [Symbol.asyncDispose]: () => methods.uninstall(),
  };
  const result = Object.defineProperty(Object.assign(new EventEmitter<InstalledEvents>(), methods), 'plan', {
    get: () => plan,
    enumerable: true,
  }) as unknown as InstalledRules;
  begin();
  return result;
}

/** What who installed it for its own purposes does in the end. */
export const leave = (rules: InstalledRules): Promise<void> =>
  rules.plan.lifetime === 'persist' ? rules.release() : rules.uninstall();

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
