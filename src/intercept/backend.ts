/**
 * What differs between the backends for those who look at the kernel and change it: the rules themselves, and where they are.
 * The claim (the table `inet linux-tproxy-<name>`, with backend `iptables` empty), policy rules and routes are alike. Only
 * reads.
 */
import { unchecked } from '../netlink/check/schema.js';
import type { NftOperation, NftRule, NftTable } from '../netlink/types.js';
import { commentOf } from './counters.js';
import { findTableLosses, type Loss } from './intact.js';
import type { Kernel } from './kernel.js';
import {
  commentOfRule,
  isMangle,
  type Mangle,
  mangleFrame,
  mangleLosses,
  mangleRebuilt,
  mangleRemoval,
  mangleRules,
  nameOfChain,
} from './mangle.js';
import { tableObject } from './nftables.js';
import type { Plan } from './plan.js';

export interface Backend {
  /** What has to be there first, and does nothing yet: one batch, on the host as it is now. */
  frame(kernel: Kernel, plan: Plan): Promise<NftOperation[]>;
  /** What puts the rules in, in one batch. */
  make(plan: Plan): readonly NftOperation[];
  /**
   * What takes them out again and leaves the claim: batches, each for itself, in this order. Some may find nothing (ENOENT),
   * or something that is somebody else's now (EBUSY).
   */
  unmake(kernel: Kernel, plan: Pick<Plan, 'name'>, claim: NftTable): Promise<NftOperation[][]>;
  /** Whether a guard must commit those batches when the process is killed: the kernel deletes the owned table only. */
  readonly outlives: boolean;
  /** With its counters. */
  rules(kernel: Kernel, plan: Pick<Plan, 'name' | 'nftTable'>): Promise<NftRule[]>;
  commentOf(rule: NftRule): string | undefined;
  /** What is missing. */
  losses(kernel: Kernel, plan: Plan): Promise<Loss[]>;
  /** Names of the nf_tables tables whose changes matter, beside the claim's. */
  readonly watched: readonly string[];
}

const nftables: Backend = {
  frame: async () => [],
  make: (plan) => unchecked(plan.nftables.slice(1)),
  // The marks stop, and what belongs to the table stays claimed.
  unmake: async (_, __, claim) => [unchecked([{ verb: 'flush', object: claim }])],
  outlives: false,
  rules: (kernel, { nftTable }) => kernel.nftables.list('rule', { family: 'inet', table: nftTable }),
  commentOf,
  losses: findTableLosses,
  watched: [],
};

const iptables: Backend = {
  frame: async (kernel, plan) => mangleFrame(plan, await readMangle(kernel)),
  make: mangleRules,
  unmake: (kernel, { name }) => unmakeMangle(kernel, name),
  outlives: true,
  rules: async (kernel, { name }) =>
    (await readMangle(kernel)).rules.filter(({ chain }) => nameOfChain(chain) === name),
  commentOf: commentOfRule,
  async losses(kernel, plan) {
    const claim = tableObject(plan);
    const tables = await kernel.nftables.list('table');
    const lost = mangleLosses(plan, await readMangle(kernel));
    return [
      ...(tables.some(({ family, name }) => family === claim.family && name === claim.name)
        ? []
        : [{ kind: 'claim', what: `table inet ${claim.name}` } as const]),
      ...(lost.length > 0 ? [{ kind: 'mangle', what: lost.join(', ') } as const] : []),
    ];
  },
  watched: ['mangle'],
};

/** The one place where it is chosen. */
export const backendOf = ({ backend }: Pick<Plan, 'backend'>): Backend =>
  backend === 'iptables' ? iptables : nftables;

export async function readMangle({ nftables }: Kernel): Promise<Mangle> {
  const [tables, chains, rules] = await Promise.all([
    nftables.list('table'),
    nftables.list('chain'),
    nftables.list('rule'),
  ]);
  return {
    tables: tables.filter(({ family, name }) => isMangle(family, name)),
    chains: chains.filter(({ family, table }) => isMangle(family, table)),
    rules: rules.filter(({ family, table }) => isMangle(family, table)),
  };
}

export const unmakeMangle = async (kernel: Kernel, name: string): Promise<NftOperation[][]> =>
  mangleRemoval(name, await readMangle(kernel));

/** All of it anew, in one batch. */
export const rebuiltMangle = async (kernel: Kernel, plan: Plan): Promise<NftOperation[]> =>
  mangleRebuilt(plan, await readMangle(kernel));
