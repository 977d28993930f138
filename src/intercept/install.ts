/**
 * Puts an interception onto a host: applies a plan, and undoes what it did when a step fails. Order: look, then the empty table as a
 * claim, routes, policy rules, and at last everything in the table in one batch; removal (installation.ts) in reverse. So at no moment
 * is a packet marked that the routing does not know what to do with.
 */
import { type InstallStep, NetlinkError } from '../errors.js';
import { unchecked } from '../netlink/check/schema.js';
import { prepare } from '../netlink/nftables.js';
import { sequence } from '../netlink/sequence.js';
import type { NftOperation, RouteOperation } from '../netlink/types.js';
import { atStep, untilQuiet } from './attempt.js';
import { backendOf } from './backend.js';
import { isBeingCleared } from './clearing.js';
import type { Content } from './contents.js';
import { Guarding } from './guard.js';
import { askFor, takeOver } from './handover.js';
import { claimOf, type Decided, decide, type HostState, lookAtHost, type Predecessor, predecessorOf } from './host.js';
import { type InstalledRules, installed } from './installation.js';
import { close, type Kernel, openKernel } from './kernel.js';
import { tableObject } from './nftables.js';
import { type Plan, type PlanOptions, planIntercept } from './plan.js';
import { clearAway, takeOut } from './reap.js';
import { changesOf } from './routing.js';

export interface InstallOptions extends PlanOptions {
  /** Path of the network namespace to install in, e.g. /run/netns/router. */
  readonly netns?: string;
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
  const planned = planIntercept(planOptions);
  const kernel = openKernel(netns);
  try {
    return await untilQuiet(async () => {
      const { plan, host, predecessor, operations } = await choose(kernel, planOptions, planned);
      const guarding = new Guarding(kernel, plan);
      const make = (kept: readonly Content[]) =>
        installed({ kernel, plan, netns, guarding, kept, repair: options.repair ?? true });
      const { rules, start } = predecessor
        ? make(await takeOver(kernel, plan, predecessor, guarding))
        : await apply({ kernel, plan, host, guarding, operations, meanwhile: () => make([]) });
      start();
      return rules;
    });
  } catch (error) {
    // What could not be undone the kernel deletes then.
    await close(kernel);
    throw error;
  }
}

/** Looks at the host, clears away what a killed process of ours left, and plans with what is free. */
async function choose(kernel: Kernel, options: PlanOptions, planned: Plan): Promise<Choice> {
  const { nftTable, table, lifetime } = planned;
  const looking = clearAway(kernel, table);
  // Most often that is what will be free: it is worked out while the kernel is asked.
  const operations = options.ownHost === undefined ? prepare(backendOf(planned).make(planned)) : undefined;
  let host = await looking;
  const find = () => (lifetime === 'persist' ? predecessorOf(host, nftTable) : undefined);
  let predecessor = find();
  if (predecessor?.table.owner !== undefined) {
    await askFor(kernel, predecessor.table);
    host = await lookAtHost(kernel, table);
    predecessor = find();
  }
  const decided = await decide(kernel, host, options, predecessor);
  if (operations && isPlanned(decided, planned, options)) return { plan: planned, host, predecessor, operations };
  const { zone: _, ...given } = options;
  const plan = planIntercept({ ...given, ...decided });
  return { plan, host, predecessor, operations: backendOf(plan).make(plan) };
}

interface Choice {
  readonly plan: Plan;
  readonly host: HostState;
  readonly predecessor: Predecessor | undefined;
  /** What puts the rules in. */
  readonly operations: readonly NftOperation[];
}

/** Whether the host has changed nothing of a plan made without it. */
function isPlanned(decided: Decided, planned: Plan, { zone }: PlanOptions): boolean {
  const { fwmark, families, table, priority } = planned;
  return (
    decided.zone === zone &&
    decided.fwmark?.value === fwmark.value &&
    decided.fwmark.mask === fwmark.mask &&
    decided.table === table &&
    decided.priority === priority &&
    decided.families?.length === families.length &&
    decided.families.every((family, index) => family === families[index])
  );
}

/**
 * The empty table, if what the plan takes is still free. Normally the rule set's generation tells: nothing at all has
 * changed since we looked. Where somebody changes it all the time (`changed` is the refusal), we claim first and look then; of
 * two who claimed the same, the older claim holds.
 */
async function claimAnyway(kernel: Kernel, plan: Plan, changed: unknown): Promise<void> {
  if (!(changed instanceof NetlinkError && changed.code === 'ERESTART')) throw changed;
  const table = tableObject(plan);
  await kernel.nftables.commit([{ verb: 'create', object: table }]);
  const host = await lookAtHost(kernel, plan.table);
  const ours = host.tables.find(({ family, name }) => family === table.family && name === table.name);
  const tables = host.tables.filter(({ handle = 0n }) => handle < (ours?.handle ?? 0n));
  try {
    if (isBeingCleared(tables)) throw changed;
    const { fwmark, table: number, priority } = plan;
    const taken = { port: plan.port, name: plan.name, families: plan.families, fwmark, table: number, priority };
    await decide(kernel, { ...host, tables, claims: tables.flatMap(claimOf) }, taken);
  } catch {
    await kernel.nftables.commit([{ verb: 'delete', object: table }]);
    throw changed;
  }
}

interface Application<T> extends Omit<Choice, 'predecessor'> {
  readonly kernel: Kernel;
  readonly guarding: Guarding;
  /** Is done while the kernel is at work. */
  readonly meanwhile: () => T;
}
/** All of it or nothing; gives what was done meanwhile. */
async function apply<T>(application: Application<T>): Promise<T> {
  const { kernel, plan, host, guarding, operations, meanwhile } = application;
  const { route, nftables } = kernel;
  const { frame, unmake } = backendOf(plan);
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
  try {
    // The kernel is not asked beforehand whether it can do all of it: to take back a batch takes it 10 ms.
    const first = await frame(kernel, plan);
    const takeOutAll = async () => takeOut(kernel, await unmake(kernel, plan, table));
    const guard = async () => {
      await guarding.renew();
      undo.push(async () => guarding.end());
    };
    const empty = unchecked<NftOperation[]>([{ verb: 'create', object: table }]);
    const claim = () => nftables.commit(empty, { generation: host.generation });
    const rest = () => [route.commit(added.routes), route.commit(added.rules), nftables.commit(operations)];
    const start = (calls: () => Promise<void>[]) => {
      const started = sequence(calls);
      for (const each of started) each.catch(() => {}); // told here, one after the other
      return started;
    };
    // In one go where nothing has to be there before the rest. (A guard alone does no harm: it spares what somebody else claims.)
    const inOneGo = first.length === 0;
    if (inOneGo) await guard();
    let [claimed, ...calls] = start(() => [claim(), ...(inOneGo ? rest() : [])]) as [Promise<void>, ...Promise<void>[]];
    claimed = claimed.catch(async (error) => {
      await claimAnyway(kernel, plan, error);
      if (inOneGo) calls = start(rest);
    });
    const result = meanwhile();
    await step('table', claimed, () => nftables.commit([{ verb: 'delete', object: table }]));
    if (!inOneGo) {
      await step('table', nftables.commit(first), takeOutAll);
      await guard();
      calls = start(rest);
    }
    const [routes, rules, batch] = calls as [Promise<void>, Promise<void>, Promise<void>];
    const takeAway = (kind: 'rules' | 'routes') => (failure: unknown) =>
      route.commit(ours(changesOf('delete', plan)[kind], failure));
    await step('routes', routes, takeAway('routes'));
    await step('rules', rules, takeAway('rules'));
    await step('batch', batch, takeOutAll);
    return result;
  } catch (error) {
    for (const undoIt of undo.reverse()) await undoIt().catch(() => {});
    throw error;
  }
}

/** Each of them fails for itself. */
const isOfMany = (step: InstallStep) => step === 'routes' || step === 'rules';
const isRefused = (error: unknown) => error instanceof NetlinkError && ['EEXIST', 'ERESTART'].includes(error.code);

/** Without those that were there before: they are somebody else's. */
function ours(removed: readonly RouteOperation[], failure: unknown): RouteOperation[] {
  const errors = (failure instanceof NetlinkError && failure.errors) || [];
  return removed.filter((_, at) => !errors.some(({ index, code }) => index === at && code === 'EEXIST')).reverse();
}
