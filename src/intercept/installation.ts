/**
 * What is installed, from then on: changed while it lives, watched, handed over, and taken down in the end, in whatever way.
 * Only what installs it (install.ts) makes one.
 */
import { EventEmitter } from 'node:events';
import { closedSocket, NetlinkError } from '../errors.js';
import { unchecked } from '../netlink/check/schema.js';
import { NftablesSocket } from '../netlink/nftables.js';
import { sequence } from '../netlink/sequence.js';
import type { NftOperation } from '../netlink/types.js';
import { ignoring, untilQuiet } from './attempt.js';
import { backendOf } from './backend.js';
import { type Content, tableWith } from './contents.js';
import { type Counters, sumCounters } from './counters.js';
import type { Guarding } from './guard.js';
import { handOver, hearRequests } from './handover.js';
import { findRoutingLosses } from './intact.js';
import { abandon, close, closeKernel, type Kernel, socketOptions } from './kernel.js';
import { mangleChanges } from './mangle.js';
import { announceMark } from './marks.js';
import { ruleChanges, tableObject } from './nftables.js';
import { type Owner, ownerOf } from './owner.js';
import { type Plan, withOnDown, withSets } from './plan.js';
import { clearAway, takeOut } from './reap.js';
import { removalOf } from './routing.js';
import { type LiveSets, liveSets, type Rewrite } from './sets.js';
import { Watch, type WatchEvents } from './watch.js';

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
export interface Installation {
  readonly kernel: Kernel;
  readonly plan: Plan;
  readonly netns: string | undefined;
  readonly guarding: Guarding;
  readonly kept: readonly Content[];
  readonly repair: boolean;
}
/** What is or will be installed; `start` is for when it is, and nothing has been begun before. */
export function installed({ kernel, plan: initial, netns, guarding, kept, repair }: Installation): {
  readonly rules: InstalledRules;
  readonly start: () => void;
} {
  const backend = backendOf(initial);
  let plan = initial;
  /** With what is in its sets, where those are rules. */
  let present = initial;
  let changing: Promise<void> = Promise.resolve();
  const table = tableObject(plan);
  const ofTable = { family: table.family, table: table.name };
  const remove = unchecked<NftOperation[]>([{ verb: 'delete', object: table }]);
  const { live, contents } = liveSets(
    plan,
    kept,
    async (operations) => {
      checkOurs();
      const change = () => kernel.nftables.commit(operations);
      await (watch ? watch.besideRemaking(change) : change());
    },
    plan.backend === 'iptables' ? (sets) => inTurn(() => rewrite(sets)) : undefined,
  );
  let forgetMark = () => {};
  let isOurs = true;
  /** The sockets may be somebody else's by then. */
  const checkOurs = () => {
    if (!isOurs) throw closedSocket();
  };
  let endHearing: (() => void) | undefined;
  let handingOver: Promise<void> | undefined;
  let ending: Promise<void> | undefined;

  const newWatch = () => {
    if (!repair) return undefined;
    const watch = new Watch(kernel, () => present, contents, guarding);
    watch.on('repaired', (report) => result.emit('repaired', report));
    watch.on('error', tell);
    watch.on('uninstalled', (by) => {
      end(letGone).then(() => result.emit('uninstalled', by), tell);
    });
    return watch;
  };
  const begin = () => {
    watch?.begin();
    if (plan.lifetime === 'persist')
      endHearing = hearRequests(kernel.nftables, table, () => {
        if (!ending) handingOver ??= giveAway().catch(tell);
      });
  };
  const start = () => {
    forgetMark = announceMark(kernel.namespace, plan.socketMark);
    if (plan.lifetime === 'process') onExit(uninstallNow);
    begin();
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
      await close(kernel);
      result.emit('handover', ownerOf(successor));
    } else {
      // The guard knows the table by its owner's socket.
      await guarding.renew();
      handingOver = undefined;
      watch = newWatch();
      begin();
    }
  };

  let watch = newWatch();
  const routing = removalOf(plan);
  // Reverse of apply: the marks stop first, then the rules that read them, then the routes, and the claim last: until then
  // nobody takes what we have not removed yet for left over, or for free.
  const takeDown = async () => {
    const { route, nftables } = kernel;
    const batches = await backend.unmake(kernel, plan, table);
    const calls = () => [
      ...batches.map((batch) => nftables.commit(batch)),
      route.commit(routing),
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
    await ignoring(['ENOENT', 'ESRCH'], route.commit(routing));
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
      await abandon(kernel);
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
    attempt(() => route.commitSync(routing));
    attempt(() => nftables.commitSync(remove));
    if (!failed) guarding.end();
  };

  const release = async () => {
    await pause();
    await kernel.nftables.generation().catch(() => {}); // what was asked of it before has been done
    await abandon(kernel);
  };

  /** Somebody has taken it down: of ours is only what we have repaired in that moment. */
  const letGone = async () => {
    await pause();
    await untilQuiet(() => clearAway(kernel, plan.table));
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
  const result: InstalledRules = Object.assign(new Emitter(() => plan), methods);
  return { rules: result, start };
}

/** Not a getter in each one: V8 keeps it, and what it refers to, until old garbage is collected. */
class Emitter extends EventEmitter<InstalledEvents> {
  readonly #plan: () => Plan;
  constructor(plan: () => Plan) {
    super();
    this.#plan = plan;
  }
  get plan(): Plan {
    return this.#plan();
  }
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
