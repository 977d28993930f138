/**
 * Keeps what is installed as it is: hears of every change that somebody else makes to it, repairs it, and says what was
 * changed by whom. It sleeps while nothing happens, and gives in slowly to somebody who changes it again and again.
 */
import { EventEmitter } from 'node:events';
import { setTimeout as startTimer } from 'node:timers';
import { setTimeout } from 'node:timers/promises';
import { InterceptError, NetlinkError } from '../errors.js';
import type { Link, NftChange, NftOperation, RouteChange } from '../netlink/types.js';
import { decodeComment } from '../netlink/userdata.js';
import type { ChangedBy, RepairReport } from '../types.js';
import { ignoring } from './attempt.js';
import { backendOf, rebuiltMangle } from './backend.js';
import { lossyBridges, lossyBridgesText } from './bridges.js';
import { type Content, isDynamic, readContents, tableWith } from './contents.js';
import type { Guarding } from './guard.js';
import { isUp, LOOPBACK_DOWN } from './host.js';
import { findRoutingLosses, type Loss, type RoutingLoss, routeName, ruleName } from './intact.js';
import type { Kernel } from './kernel.js';
import { isLeaving, tableObject } from './nftables.js';
import { changedByText, processIdOf } from './owner.js';
import type { Plan } from './plan.js';
import { LOOPBACK_INDEX } from './statement.js';

/** One command makes several changes (`ip rule flush`): they are waited for, and are one repair. */
const SETTLE_MS = 10;
/** Longer than a notification is under way. */
const HEARING_MS = 50;
/** The same thing repaired this often within this time: somebody is at work who will not have it. */
const CONTESTED = { repairs: 5, withinMs: 10_000 };
/** How long to wait then, and when repairs fail. */
const RETRY_MS = 10_000;
/** So many failures in a row may be a race with whoever changes things at this moment. */
const RACES = 3;
/** A loopback interface that is taken down to be taken up again is so for less. */
const DOWN_MS = 500;
/** What the guard is called in reports. */
const GUARD = 'guard process';

export interface WatchEvents {
  repaired: [report: RepairReport];
  error: [error: Error];
  /** Somebody has taken it down on purpose (`uninstallIntercept`, `linux-tproxy down`): it is not brought back. */
  uninstalled: [by: ChangedBy | undefined];
}

export class Watch extends EventEmitter<WatchEvents> {
  readonly #kernel: Kernel;
  readonly #current: () => Plan;
  readonly #contents: () => Content[];
  readonly #guarding: Guarding;
  /** The kernel lets nobody else change the table. */
  readonly #owned: boolean;
  readonly #ends: (() => void)[] = [];
  #timer: NodeJS.Timeout | undefined;
  #working: Promise<void> = Promise.resolve();
  #stopped = false;
  #contested = false;
  #failures = 0;
  /** The loopback interface is. */
  #down: { readonly since: number; told: boolean } | undefined;
  /** Told of bridges. */
  #lossy = false;
  /** What is known of changes that no report has told yet, by what they are about. */
  readonly #heard = new Map<string, { readonly at: number; readonly by?: ChangedBy }>();
  #repairs: { readonly what: string; readonly at: number }[] = [];

  /** `current`: the plan as it is at the moment; `contents`: of its sets. */
  constructor(kernel: Kernel, current: () => Plan, contents: () => Content[], guarding: Guarding) {
    super();
    this.#kernel = kernel;
    this.#current = current;
    this.#contents = contents;
    this.#guarding = guarding;
    this.#owned = tableObject(current()).flags?.includes('owner') ?? false;
  }

  /** Begins with a look. */
  begin(): void {
    const plan = this.#plan;
    // Of what others do the kernel may tell more than we could read.
    const ours = { table: plan.table, priorities: plan.rules.flatMap(({ priority }) => priority ?? []) };
    this.#ends.push(this.#kernel.route.watch((changes) => this.#hearRoutes(changes), ours));
    for (const table of [...(this.#owned ? [] : [plan.nftTable]), ...backendOf(plan).watched])
      this.#ends.push(this.#kernel.nftables.watch((changes) => this.#hearTable(changes), { table }));
    this.#guarding.watch = this;
    // What was changed since it was installed and before now was told to nobody.
    this.#lookIn(SETTLE_MS);
  }

  get #plan(): Plan {
    return this.#current();
  }

  /** Ends it, and a repair that is under way: what is done with the rules afterwards is the caller's. */
  stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    for (const end of this.#ends.splice(0)) end();
    return this.#working;
  }

  /** A change of our own to what the plan says and the kernel has, while nobody compares the two. */
  between<T>(change: () => Promise<T>): Promise<T> {
    const turn = this.#working.then(change);
    this.#working = turn.then(
      () => {},
      () => {},
    );
    return turn;
  }

  /** A change of what is in the sets: not while they are read for a table that is made anew, which would be without it. */
  besideRemaking<T>(change: () => Promise<T>): Promise<T> {
    return this.#owned ? change() : this.between(change);
  }

  guardLost(): void {
    this.#notice(GUARD);
  }

  // ---- hearing ----------------------------------------------------------------------------------------------------------

  #hearRoutes(changes: readonly RouteChange[]): void {
    for (const change of changes) {
      if (change.kind === 'lost') this.#notice();
      else if (change.portId !== this.#kernel.route.portId) {
        const by = changedBy(change.portId, change.processName);
        for (const what of this.#hitBy(change)) this.#notice(what, by);
      }
    }
  }

  /** What of ours a change may be about. */
  #hitBy(change: Exclude<RouteChange, { kind: 'lost' }>): string[] {
    const { rules, routes } = this.#plan;
    switch (change.kind) {
      case 'rule':
        if (change.verb === 'add') return [];
        return rules
          .filter(({ family, priority }) => family === change.rule.family && priority === change.rule.priority)
          .map(ruleName);
      case 'route':
        return routes
          .filter(({ family, table }) => family === change.route.family && table === change.route.table)
          .map(routeName);
      case 'link':
        if (change.link.linkInfo?.kind === 'bridge') this.#lookIn(SETTLE_MS);
        // Going down it took its routes along, some of them without a word.
        return routes.filter(({ dev }) => dev === change.link.name).map(routeName);
      case 'address':
        // With the last one of a family go its routes, without a word.
        return routes
          .filter(({ family }) => change.address.linkIndex === LOOPBACK_INDEX && family === change.address.family)
          .map(routeName);
    }
  }

  #hearTable(changes: readonly NftChange[]): void {
    for (const change of changes) {
      if (change.kind === 'lost') this.#notice();
      else if (change.portId !== this.#kernel.nftables.portId) {
        const { processId, processName } = change.generation;
        const by = changedBy(change.portId, processName) ?? { processId, processName };
        const goes = ({ verb, object }: NftOperation) =>
          verb !== 'delete' && object.kind === 'table' && isLeaving(decodeComment(object.userdata) ?? '');
        if (change.operations.some(goes)) {
          void this.stop();
          this.#tell('uninstalled', by);
          return;
        }
        this.#notice(this.#plan.nftTable, by);
      }
    }
  }

  #notice(what?: string, by?: ChangedBy): void {
    if (what !== undefined) {
      const { at = performance.now() } = this.#heard.get(what) ?? {};
      this.#heard.set(what, { at, ...(by && { by }) });
    }
    this.#lookIn(this.#contested || this.#failures > RACES ? RETRY_MS : SETTLE_MS);
  }

  #lookIn(milliseconds: number): void {
    if (this.#stopped || this.#timer) return;
    this.#timer = startTimer(() => {
      this.#timer = undefined;
      this.#working = this.#working.then(() => this.#look());
    }, milliseconds).unref();
  }

  // ---- repairing --------------------------------------------------------------------------------------------------------

  async #look(): Promise<void> {
    if (this.#stopped) return;
    const started = performance.now();
    try {
      const plan = this.#plan;
      const { losses: findRuleLosses, outlives } = backendOf(plan);
      const losses: Loss[] = [
        ...(await findRoutingLosses(this.#kernel, plan)),
        ...(this.#owned && !outlives ? [] : await findRuleLosses(this.#kernel, plan)),
        ...(this.#guarding.isLost ? [{ kind: 'guard', what: GUARD } as const] : []),
      ];
      if (plan.routes.length > 0) this.#tellOfLinks(await this.#kernel.route.linkList());
      if (losses.length > 0) {
        await this.#repair(losses);
        const ended = performance.now();
        // What was found by chance, before the kernel's word of it had come this far, is heard of now.
        const isUnheard = () => losses.some((loss) => !this.#heard.has(this.#keyOf(loss)));
        while (isUnheard() && performance.now() < ended + HEARING_MS) await setTimeout(1);
        this.#report(losses, started, ended);
      } else {
        this.#contested = false;
        // Changed and changed back. What came while we looked we may not have seen.
        for (const [what, { at }] of this.#heard) if (at < started) this.#heard.delete(what);
      }
      this.#failures = 0;
    } catch (error) {
      this.#fail(error);
    }
  }

  #keyOf(loss: Loss): string {
    return loss.kind === 'rule' || loss.kind === 'route' || loss.kind === 'guard' ? loss.what : this.#plan.nftTable;
  }

  /** In the order of the installation: what reads the marks before what sets them. */
  async #repair(losses: readonly Loss[]): Promise<void> {
    const { nftables } = this.#kernel;
    for (const loss of losses) {
      if (this.#stopped) return;
      switch (loss.kind) {
        case 'route':
        case 'rule':
          await restore(this.#kernel, loss);
          break;
        case 'guard':
          this.#guarding.start();
          break;
        case 'table':
          await nftables.commit(loss.gone ? tableWith(this.#plan, this.#contents()) : await this.#rebuilt());
          break;
        case 'claim':
          await nftables.commit([{ verb: 'add', object: tableObject(this.#plan) }]);
          break;
        case 'mangle':
          await nftables.commit(await rebuiltMangle(this.#kernel, this.#plan));
          await this.#guarding.renew();
      }
    }
  }

  /** The table anew in one batch, with what its sets hold now: whoever may change it may have changed them, too. */
  async #rebuilt(): Promise<NftOperation[]> {
    const table = tableObject(this.#plan);
    const contents = await readContents(this.#kernel.nftables, table, (set) => !isDynamic(set));
    const missing = this.#contents().filter(({ set }) => !contents.some((content) => content.set === set));
    return [{ verb: 'delete', object: table }, ...tableWith(this.#plan, [...contents, ...missing])];
  }

  #report(losses: readonly Loss[], started: number, ended: number): void {
    if (this.#stopped) return;
    const heard = losses.flatMap((loss) => this.#heard.get(this.#keyOf(loss)) ?? []);
    for (const loss of losses) this.#heard.delete(this.#keyOf(loss));
    const by = new Map(heard.flatMap(({ by }) => (by ? [[`${by.processId} ${by.processName}`, by]] : [])));
    const report: RepairReport = {
      repaired: losses.map(({ what }) => what),
      by: [...by.values()],
      milliseconds: ended - Math.min(started, ...heard.map(({ at }) => at)),
    };
    this.#tell('repaired', report);
    const now = performance.now();
    this.#repairs = this.#repairs.filter(({ at }) => at > now - CONTESTED.withinMs);
    this.#repairs.push(...report.repaired.map((what) => ({ what, at: now })));
    const often = report.repaired.find(
      (what) => this.#repairs.filter((each) => each.what === what).length > CONTESTED.repairs,
    );
    if (often !== undefined && !this.#contested) {
      this.#contested = true;
      this.#tell('error', contested(often, report.by));
    }
    if (this.#contested) this.#lookIn(RETRY_MS);
  }

  /** What keeps interception from working, and is not ours to mend. */
  #tellOfLinks(links: readonly Link[]): void {
    this.#tellLoopback(links.some((link) => link.index === LOOPBACK_INDEX && isUp(link)));
    const lossy = lossyBridges(links, { ...this.#plan, netns: this.#kernel.netns });
    if (lossy && !this.#lossy) this.#tell('error', new InterceptError('ERR_TPROXY_BRIDGE', lossyBridgesText(lossy)));
    this.#lossy = lossy !== undefined;
  }

  #tellLoopback(up: boolean): void {
    if (up) this.#down = undefined;
    else {
      this.#down ??= { since: performance.now(), told: false };
      if (this.#down.told) return;
      this.#down.told = performance.now() - this.#down.since >= DOWN_MS;
      if (this.#down.told) this.#tell('error', new InterceptError('ERR_TPROXY_REPAIR', LOOPBACK_DOWN));
      else this.#lookIn(DOWN_MS);
    }
  }

  #fail(error: unknown): void {
    if (this.#stopped) return;
    // The interface is down: there is news when it is up.
    if (error instanceof NetlinkError && error.code === 'ENETDOWN') return;
    this.#failures++;
    if (this.#failures === RACES + 1) this.#tell('error', failed(error));
    this.#lookIn(this.#failures > RACES ? RETRY_MS : SETTLE_MS);
  }

  /** Not from here: what a listener throws is no failure of the repair. */
  #tell<E extends keyof WatchEvents>(event: E, ...args: WatchEvents[E]): void {
    process.nextTick(() => (this as EventEmitter).emit(event, ...args));
  }
}

export async function restore({ route }: Kernel, loss: RoutingLoss): Promise<void> {
  if (loss.kind === 'rule') return ignoring(['EEXIST'], route.ruleAdd(loss.rule));
  for (const each of loss.instead) await ignoring(['ESRCH', 'ENOENT'], route.routeDelete(each));
  await ignoring(['EEXIST'], route.routeAdd(loss.route));
}

export function changedBy(portId: number, processName?: string): ChangedBy | undefined {
  const processId = processIdOf(portId);
  return processId === undefined ? undefined : { processId, ...(processName !== undefined && { processName }) };
}

function contested(what: string, by: readonly ChangedBy[]): InterceptError {
  const who = changedByText(by);
  const remedy = what.startsWith('table')
    ? ''
    : '. systemd-networkd leaves them alone with ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no in networkd.conf';
  return new InterceptError(
    'ERR_TPROXY_CONTESTED',
    `Somebody removes or changes what is installed again and again (${what}${who && `, last by ${who}`}): from now on it is repaired every ${RETRY_MS / 1000} seconds only${remedy}`,
  );
}

function failed(cause: unknown): InterceptError {
  return new InterceptError(
    'ERR_TPROXY_REPAIR',
    `Somebody changed what is installed, and it could not be repaired (tried again every ${RETRY_MS / 1000} seconds): ${(cause as Error).message}`,
    undefined,
    cause,
  );
}
