/**
 * The only file (with installed.ts and watch.ts) that changes the host: applies a plan, takes it down, and undoes what it
 * did when a step fails. Order: look, then the empty table as a claim, routes, policy rules, and at last everything in the table in one
 * batch; removal in reverse. So at no moment is a packet marked that the routing does not know what to do with.
 */
import { EventEmitter } from 'node:events';
import { setTimeout as startTimer } from 'node:timers';
import { setTimeout as sleep } from 'node:timers/promises';
import { type InstallStep, InterceptError, NetlinkError } from '../errors.js';
import { NftablesSocket } from '../netlink/nftables.js';
import { type Guard, RouteSocket } from '../netlink/route.js';
import { sequence } from '../netlink/sequence.js';
import type { NftOperation, NftTable, Route, RouteOperation, Rule } from '../netlink/types.js';
import {
  claimOf,
  completeOptions,
  type HostState,
  isClaimed,
  type Kernel,
  lookAtHost,
  staleRoutes,
  staleRules,
} from './host.js';

import { findLosses } from './intact.js';
import { announceMark, namespaceOf } from './marks.js';
import { ruleChanges, tableObject } from './nftables.js';
import { type Plan, type PlanOptions, planIntercept, withOnDown } from './plan.js';
import { type LiveSets, liveSets } from './sets.js';
import { type Counters, sumCounters } from './verify.js';
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
/** Several who get into each other's way part by waiting unequally long. */
const breathe = (attempt: number) => sleep(Math.random() * Math.min(attempt, 20));

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
    for (let attempt = 1; ; attempt++) {
      const guard = planOptions.lifetime === 'permanent' ? undefined : startGuard(kernel.route);
      try {
        const { plan, host } = await choose(kernel, planOptions);
        await apply(kernel, plan, host, guard);
        return installed(kernel, plan, guard, announceMark(netns, plan.socketMark), options.repair ?? true);
      } catch (error) {
        await guard?.end();
        if (attempt === ATTEMPTS || !isRace(error)) throw error;
        await breathe(attempt);
      }
    }
  } catch (error) {
    // What could not be undone the kernel deletes then.
    await Promise.all([kernel.route.close(), kernel.nftables.close()]);
    throw error;
  }
}

/**
 * Sockets that nobody uses, by namespace, for a while: one to nf_tables that is closed right after a deletion keeps the whole
 * rule set locked until the kernel has cleared away what was deleted, some 10 to 20 ms.
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

export function closeKernel(kernel: Kernel): void {
  const close = () => {
    idle.delete(kernel);
    void kernel.route.close();
    void kernel.nftables.close();
  };
  idle.set(kernel, startTimer(close, IDLE_MS).unref());
}

/** Looks at the host, clears away what a killed process of ours left, and plans with what is free. */
async function choose(kernel: Kernel, options: PlanOptions): Promise<{ plan: Plan; host: HostState }> {
  const { table } = planIntercept(options);
  let host = await lookAtHost(kernel, table);
  const stale = staleRules(host);
  const routes = await staleRoutes(kernel, host, stale, table);
  if (stale.length > 0 || routes.length > 0) {
    await reap(kernel, stale, routes);
    host = await lookAtHost(kernel, table);
  }
  return { plan: planIntercept(await completeOptions(kernel, host, options)), host };
}

/**
 * Removes what killed processes have left, each only if nobody has claimed it by now: another process may have reaped it
 * before, and have put the very same rule into its place.
 */
export async function reap(
  { route, nftables }: Kernel,
  rules: readonly Rule[],
  routes: readonly Route[],
): Promise<void> {
  const claims = async () => (await nftables.list('table')).flatMap(claimOf);
  for (const rule of rules) if (!isClaimed(await claims(), rule)) await ignoring(['ENOENT'], route.ruleDelete(rule));
  for (const each of routes)
    if (!(await claims()).some(({ table }) => table === each.table))
      await ignoring(['ESRCH', 'ENOENT'], route.routeDelete(each));
}

/** The table with nothing in it: the marks stop, and what belongs to it stays claimed. */
export const emptied = (table: NftTable): NftOperation[] => [
  { verb: 'delete', object: table },
  { verb: 'create', object: table },
];

/**
 * Somebody changes the rule set all the time, so that no look at it is of its present generation: then we claim first and look
 * then. Of two who claimed the same, the older claim holds.
 */
async function claimAndLook(kernel: Kernel, plan: Plan, changed: unknown): Promise<void> {
  const table = tableObject(plan);
  await kernel.nftables.commit([{ verb: 'create', object: table }]);
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

/**
 * Makes calls in one go. Where one fails, `goesOn` says whether the others shall be made all the same, or throws. What it
 * gives is the first call that they end with.
 */
async function inOrder(
  calls: readonly (() => Promise<void>)[],
  goesOn: (error: unknown, index: number) => boolean | Promise<boolean>,
): Promise<{ readonly index: number; readonly error: unknown } | undefined> {
  for (let next = 0; next < calls.length; next++) {
    const results = await Promise.allSettled(sequence(() => calls.slice(next).map((call) => call())));
    const failed = results.findIndex(({ status }) => status === 'rejected');
    if (failed < 0) return undefined;
    next += failed;
    const { reason: error } = results[failed] as PromiseRejectedResult;
    if (!(await goesOn(error, next))) return { index: next, error };
  }
  return undefined;
}

const changesOf = (verb: RouteOperation['verb'], { rules, routes }: Pick<Plan, 'rules' | 'routes'>) => ({
  rules: rules.map((rule): RouteOperation => ({ verb, kind: 'rule', rule })),
  routes: routes.map((route): RouteOperation => ({ verb, kind: 'route', route })),
});

/** What takes a plan's rules and routes out again, in the reverse order. */
function removalOf(plan: Pick<Plan, 'rules' | 'routes'>): ReturnType<typeof changesOf> {
  const { rules, routes } = changesOf('delete', plan);
  return { rules: rules.reverse(), routes: routes.reverse() };
}

async function apply(kernel: Kernel, plan: Plan, host: HostState, guard: Guard | undefined): Promise<void> {
  const { route, nftables } = kernel;
  const table = tableObject(plan);
  const added = changesOf('add', plan);
  const removed = removalOf(plan);
  /** `undo` is given why the step failed, where it did: it may have been done all the same (its answer was lost), or in part. */
  const steps: {
    readonly step: InstallStep | 'guard';
    readonly call: () => Promise<void>;
    readonly undo: (error: unknown) => Promise<void> | undefined;
  }[] = [
    {
      step: 'table',
      // If what the plan takes is still free: nothing at all has changed since we looked.
      call: () => nftables.commit([{ verb: 'create', object: table }], { generation: host.generation }),
      undo: (error) =>
        isCode(error, ['EEXIST', 'ERESTART']) ? undefined : nftables.commit([{ verb: 'delete', object: table }]),
    },
    ...(guard
      ? [
          {
            step: 'guard' as const,
            call: () => guard.arm([...removed.rules, ...removed.routes]),
            undo: () => guard.end(),
          },
        ]
      : []),
    {
      step: 'routes',
      call: () => route.commit(added.routes),
      undo: (error) => route.commit(but(removed.routes, error)),
    },
    {
      step: 'rules',
      call: () => route.commit(added.rules),
      undo: (error) => route.commit(but(removed.rules, error)),
    },
    {
      step: 'batch',
      call: () => nftables.commit(plan.nftables.slice(1)),
      undo: () => nftables.commit(emptied(table)),
    },
  ];
  const failure = await inOrder(
    steps.map(({ call }) => call),
    async (error, index) => {
      const { step } = steps[index] ?? {};
      if (step === 'guard') warnOfNoGuard(error);
      else if (step === 'table' && isCode(error, ['ERESTART'])) await claimAndLook(kernel, plan, error);
      else return false;
      return true;
    },
  );
  if (!failure) return;
  const { index, error } = failure;
  const undone = steps.slice(0, index + 1).map(
    ({ undo }, position) =>
      () =>
        undo(position === index ? error : undefined),
  );
  for (const undo of undone.reverse()) await undo()?.catch(() => {});
  throw atStep(steps[index]?.step as InstallStep, error);
}

/** Without those that are not ours to undo: what they would delete was there before. `removed` is in the reverse order. */
function but(removed: readonly RouteOperation[], error: unknown): RouteOperation[] {
  const errors = (error instanceof NetlinkError && error.errors) || [];
  return removed.filter(
    (_, index) => !errors.some((each) => each.code === 'EEXIST' && each.index === removed.length - 1 - index),
  );
}

/** The table dies with this process by itself. A guard sees to it that the rules and routes do, too. */
function startGuard(route: RouteSocket): Guard | undefined {
  try {
    return route.guard();
  } catch (error) {
    warnOfNoGuard(error);
    return undefined;
  }
}

/** It is a net for the case of a crash, and what is left then does nothing: no reason to refuse. */
function warnOfNoGuard(error: unknown): void {
  process.emitWarning(
    `Policy rules and routes will stay behind if this process is killed, until the next start: ${(error as Error).message}`,
    { code: 'LINUX_TPROXY_NO_GUARD' },
  );
}

function installed(
  kernel: Kernel,
  initial: Plan,
  guard: Guard | undefined,
  forgetMark: () => void,
  repair: boolean,
): InstalledRules {
  const { route, nftables } = kernel;
  let plan = initial;
  let switching: Promise<void> = Promise.resolve();
  const table = tableObject(plan);
  const ofTable = { family: table.family, table: table.name };
  const remove: NftOperation[] = [{ verb: 'delete', object: table }];
  const { live, contents } = liveSets(plan, (operations) => nftables.commit(operations));
  const watch = repair ? new Watch(kernel, () => plan, contents) : undefined;
  let uninstalling: Promise<void> | undefined;

  // Reverse of apply: the marks stop first, then the rules that read them, then the routes, and the claim last: until then
  // nobody takes what we have not removed yet for left over, or for free.
  const removed = removalOf(plan);
  const uninstall = async () => {
    await watch?.stop();
    const failure = await inOrder(
      [
        () => nftables.commit(emptied(table)),
        () => route.commit(removed.rules),
        () => route.commit(removed.routes),
        () => nftables.commit(remove),
        ...(guard ? [() => guard.end()] : []),
      ],
      isGone,
    );
    if (failure) throw failure.error;
    atExit.delete(uninstallNow);
    forgetMark();
    closeKernel(kernel);
  };
  const uninstallNow = () => {
    void watch?.stop();
    const attempt = (what: () => void) => {
      try {
        what();
      } catch {
        // The process ends: nobody is left to tell, and what could not be removed is reaped at the next start.
      }
    };
    attempt(() => nftables.commitSync(emptied(table)));
    attempt(() => route.commitSync(removed.rules));
    attempt(() => route.commitSync(removed.routes));
    attempt(() => nftables.commitSync(remove));
    guard?.endSync();
  };
  if (plan.lifetime === 'process') onExit(uninstallNow);

  const switchOnDown = async (onDown: Plan['onDown']) => {
    const next = withOnDown(plan, onDown);
    const operations = ruleChanges(plan, next, await nftables.list('rule', ofTable));
    if (operations.length > 0) await nftables.commit(operations);
    plan = next;
  };

  const methods = {
    ...live,
    setOnDown(onDown: Plan['onDown']) {
      const turn = switching.then(() => (watch ? watch.between(() => switchOnDown(onDown)) : switchOnDown(onDown)));
      switching = turn.catch(() => {});
      return turn;
    },
    counters: async () => sumCounters(await nftables.list('rule', ofTable)),
    async verify() {
      const missing = (await findLosses(kernel, plan)).map(({ what }) => what);
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
export function isRace(error: unknown): boolean {
  const cause = error instanceof InterceptError ? error.cause : error;
  return cause instanceof NetlinkError && ['EEXIST', 'ERESTART', 'EINTR', 'ENOBUFS'].includes(cause.code);
}

/** Whether all that failed is that there was nothing to delete. */
function isGone(error: unknown): boolean {
  if (!(error instanceof NetlinkError)) return false;
  return [error, ...(error.errors ?? [])].every((each) => isCode(each, ['ENOENT', 'ESRCH']));
}

const isCode = (error: unknown, codes: readonly string[]) =>
  codes.includes((error as { readonly code?: string } | undefined)?.code ?? '');

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
    if (!(error instanceof NetlinkError && codes.includes(error.code))) throw error;
  });
}
