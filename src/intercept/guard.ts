/**
 * The kernel deletes the table when its process ends. A guard, a child process, sees to it that policy rules, routes and
 * chains of iptables go, too; and the table, if it is one that outlives its process and nobody takes it over.
 */
import type { NftOperation } from '../netlink/types.js';
import { backendOf } from './backend.js';
import type { Kernel } from './kernel.js';
import { claimWords, tableObject } from './nftables.js';
import type { Plan } from './plan.js';
import { removalOf } from './routing.js';

export class Guarding {
  readonly #kernel: Kernel;
  readonly #plan: Plan;
  /** Somebody has ended it. */
  isLost = false;
  /**
   * Is told then. An object: V8 counts a function that is assigned to a property where it is written among the old at once, and
   * with it whatever it refers to.
   */
  watch: { guardLost(): void } | undefined;
  /** What takes the rules out and leaves the claim, when nobody can look at them any more. */
  batches: readonly NftOperation[][] = [];

  constructor(kernel: Kernel, plan: Plan) {
    this.#kernel = kernel;
    this.#plan = plan;
  }

  /** For what is there now: rules that have been made anew are other ones. */
  async renew(): Promise<void> {
    this.batches = await backendOf(this.#plan).unmake(this.#kernel, this.#plan, tableObject(this.#plan));
    this.tryToStart();
  }

  /** Throws where it cannot be started. */
  start(): void {
    const { lifetime, graceMs = 0, rules } = this.#plan;
    if (lifetime === 'permanent' || (lifetime === 'process' && rules.length === 0)) return;
    const { guard, nftables } = this.#kernel;
    guard.renew(removalOf(this.#plan), {
      batches: backendOf(this.#plan).outlives ? this.batches : [],
      ...(lifetime === 'persist'
        ? { orphan: { table: tableObject(this.#plan).name, owner: nftables.portId, graceMs } }
        : { heir: { owner: nftables.portId, words: claimWords(this.#plan) } }),
    });
    this.isLost = false;
    this.#kernel.guarding = this;
  }

  guardEnded(): void {
    this.isLost = true;
    this.watch?.guardLost();
  }

  /** The same, where it is a net for the case of a crash only: what is left then does nothing, so there is no reason to refuse. */
  private tryToStart(): void {
    try {
      this.start();
    } catch (error) {
      process.emitWarning(
        `Policy rules and routes will stay behind if this process is killed, until the next start: ${(error as Error).message}`,
        { code: 'LINUX_TPROXY_NO_GUARD' },
      );
    }
  }

  end(): void {
    this.#kernel.guard.rest();
    this.#kernel.guarding = undefined;
  }
}
