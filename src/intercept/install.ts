/**
 * The only file (with watch.ts) that changes the host: applies a plan, takes it down, and undoes what it did when a step
 * fails. Order: look, then the empty table as a claim, routes, policy rules, and at last everything in the table in one
 * batch; removal in reverse. So at no moment is a packet marked that the routing does not know what to do with.
 */
import { type InstallStep, InterceptError, NetlinkError } from '../errors.js';
import { NftablesSocket } from '../netlink/nftables.js';
import { RouteSocket } from '../netlink/route.js';
import type { NftOperation } from '../netlink/types.js';
import { decodeComment } from '../netlink/userdata.js';
import { completeOptions, type HostState, type Kernel, lookAtHost, staleRoutes, staleRules } from './host.js';
import { announceMark } from './marks.js';
import { ruleChanges, tableObject } from './nftables.js';
import { type Plan, type PlanOptions, planIntercept, withOnDown } from './plan.js';
import { counted } from './ruleset.js';
import { type LiveSets, liveSets } from './sets.js';

export interface InstallOptions extends PlanOptions {
  /** Path of the network namespace to install in, e.g. /run/netns/router. */
  readonly netns?: string;
}

export interface Count {
  readonly packets: bigint;
  readonly bytes: bigint;
}

export interface InstalledRules extends LiveSets {
  /** As installed; `setOnDown` changes it, the live sets do not. */
  readonly plan: Plan;
  /** Another `onDown`, at once, in one atomic batch: no packet meets a rule set in between, and no counter begins anew. */
  setOnDown(onDown: Plan['onDown']): Promise<void>;
  /** What the rules have counted since they were installed. */
  counters(): Promise<Readonly<Record<keyof typeof counted, Count>>>;
  /** Whether all of it is still there; what is not, in words. */
  verify(): Promise<{ readonly intact: boolean; readonly missing: readonly string[] }>;
  /** Takes everything down again. What somebody else has removed already is no error. */
  uninstall(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** How often to begin anew when somebody else changed the host between our look at it and our change. */
const ATTEMPTS = 20;

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
      const { plan, host } = await choose(kernel, planOptions);
      try {
        await apply(kernel, plan, host);
        return installed(kernel, plan, announceMark(netns, plan.socketMark));
      } catch (error) {
        if (attempt === ATTEMPTS || !isRace(error)) throw error;
      }
    }
  } catch (error) {
    closeKernel(kernel);
    throw error;
  }
}

function openKernel(netns: string | undefined): Kernel {
  const route = new RouteSocket({ ...(netns !== undefined && { netns }) });
  try {
    return { route, nftables: new NftablesSocket({ ...(netns !== undefined && { netns }) }) };
  } catch (error) {
    route.close();
    throw error;
  }
}

function closeKernel({ route, nftables }: Kernel): void {
  route.close();
  nftables.close();
}

/** Looks at the host, clears away what a killed process of ours left, and plans with what is free. */
async function choose(kernel: Kernel, options: PlanOptions): Promise<{ plan: Plan; host: HostState }> {
  let host = await lookAtHost(kernel);
  const stale = staleRules(host);
  const routes = await staleRoutes(kernel, host, stale, planIntercept(options).table);
  if (stale.length > 0 || routes.length > 0) {
    for (const rule of stale) await ignoring(['ENOENT'], kernel.route.ruleDelete(rule));
    for (const route of routes) await ignoring(['ESRCH', 'ENOENT'], kernel.route.routeDelete(route));
    host = await lookAtHost(kernel);
  }
  return { plan: planIntercept(await completeOptions(kernel, host, options)), host };
}

async function apply({ route, nftables }: Kernel, plan: Plan, { generation }: HostState): Promise<void> {
  const table = tableObject(plan);
  const undo: (() => Promise<unknown>)[] = [];
  /** What failed may have happened all the same (its answer was lost), so it is undone too, unless it was there before. */
  const step = async (name: InstallStep, doIt: Promise<void>, undoIt: () => Promise<unknown>) => {
    undo.push(undoIt);
    try {
      await doIt;
    } catch (error) {
      if (error instanceof NetlinkError && error.code === 'EEXIST') undo.pop();
      throw atStep(name, error);
    }
  };
  try {
    // Everything at once and without an end: the kernel checks it all and keeps nothing. What it cannot do is known now.
    await nftables
      .commit([{ verb: 'create', object: table }, ...plan.nftables.slice(1)], { generation, dryRun: true })
      .catch((error) => Promise.reject(atStep('check', error)));
    await step('table', nftables.commit([{ verb: 'create', object: table }], { generation }), () =>
      nftables.commit([{ verb: 'delete', object: table }]),
    );
    for (const each of plan.routes) await step('routes', route.routeAdd(each), () => route.routeDelete(each));
    for (const each of plan.rules) await step('rules', route.ruleAdd(each), () => route.ruleDelete(each));
    await nftables.commit(plan.nftables.slice(1)).catch((error) => Promise.reject(atStep('batch', error)));
  } catch (error) {
    for (const undoIt of undo.reverse()) await undoIt().catch(() => {});
    throw error;
  }
}

function installed(kernel: Kernel, initial: Plan, forgetMark: () => void): InstalledRules {
  const { route, nftables } = kernel;
  let plan = initial;
  let switching: Promise<void> = Promise.resolve();
  const table = tableObject(plan);
  const ofTable = { family: table.family, table: table.name };
  const remove: NftOperation[] = [{ verb: 'delete', object: table }];
  let uninstalling: Promise<void> | undefined;

  // Reverse of apply: the marks stop first, then the rules that read them, then the routes.
  const uninstall = async () => {
    atExit.delete(uninstallNow);
    forgetMark();
    try {
      await ignoring(['ENOENT'], nftables.commit(remove));
      for (const rule of [...plan.rules].reverse()) await ignoring(['ENOENT'], route.ruleDelete(rule));
      for (const each of [...plan.routes].reverse()) await ignoring(['ESRCH', 'ENOENT'], route.routeDelete(each));
    } finally {
      closeKernel(kernel);
    }
  };
  const uninstallNow = () => {
    const attempt = (what: () => void) => {
      try {
        what();
      } catch {
        // The process ends: nobody is left to tell, and what could not be removed is reaped at the next start.
      }
    };
    attempt(() => nftables.commitSync(remove));
    for (const rule of [...plan.rules].reverse()) attempt(() => route.ruleDeleteSync(rule));
    for (const each of [...plan.routes].reverse()) attempt(() => route.routeDeleteSync(each));
  };
  if (plan.lifetime === 'process') onExit(uninstallNow);

  const switchOnDown = async (onDown: Plan['onDown']) => {
    const next = withOnDown(plan, onDown);
    const operations = ruleChanges(plan, next, await nftables.list('rule', ofTable));
    if (operations.length > 0) await nftables.commit(operations);
    plan = next;
  };

  const result: InstalledRules = {
    get plan() {
      return plan;
    },
    ...liveSets(plan, (operations) => nftables.commit(operations)),
    setOnDown(onDown) {
      const turn = switching.then(() => switchOnDown(onDown));
      switching = turn.catch(() => {});
      return turn;
    },
    async counters() {
      const sums = Object.fromEntries(Object.keys(counted).map((key) => [key, { packets: 0n, bytes: 0n }])) as Record<
        keyof typeof counted,
        { packets: bigint; bytes: bigint }
      >;
      for (const rule of await nftables.list('rule', ofTable)) {
        const comment = decodeComment(rule.userdata);
        const key = (Object.keys(counted) as (keyof typeof counted)[]).find((each) => counted[each] === comment);
        if (key)
          for (const expression of rule.expressions)
            if (expression.kind === 'counter') {
              sums[key].packets += expression.packets;
              sums[key].bytes += expression.bytes;
            }
      }
      return sums;
    },
    async verify() {
      const [rules, routes, tables, nftRules] = await Promise.all([
        route.ruleList(),
        route.routeList({ table: plan.table }),
        nftables.list('table'),
        nftables.list('rule', ofTable).catch(() => []),
      ]);
      const planned = plan.nftables.filter(({ object }) => object.kind === 'rule').length;
      const missing = [
        ...plan.rules
          .filter(
            (rule) =>
              !rules.some(
                (each) => each.family === rule.family && each.priority === rule.priority && each.action === rule.action,
              ),
          )
          .map((rule) => `policy rule ${rule.priority} (${rule.family})`),
        ...plan.routes
          .filter((each) => !routes.some((found) => found.family === each.family && found.type === each.type))
          .map((each) => `route in table ${each.table} (${each.family})`),
        ...(tables.some(({ family, name }) => family === table.family && name === table.name)
          ? []
          : [`table inet ${table.name}`]),
        ...(nftRules.length === planned ? [] : [`rules in table inet ${table.name}: ${nftRules.length} of ${planned}`]),
      ];
      return { intact: missing.length === 0, missing };
    },
    uninstall() {
      uninstalling ??= uninstall();
      return uninstalling;
    },
    [Symbol.asyncDispose]: () => result.uninstall(),
  };
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

async function ignoring(codes: readonly string[], attempt: Promise<void>): Promise<void> {
  await attempt.catch((error) => {
    if (!(error instanceof NetlinkError && codes.includes(error.code))) throw error;
  });
}
