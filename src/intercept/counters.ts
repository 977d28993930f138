/** What an interception has counted, from the kernel's list of its rules. Pure. */
import type { NftRule } from '../netlink/types.js';
import { decodeComment } from '../netlink/userdata.js';
import { counted } from './ruleset.js';

export interface Count {
  readonly packets: bigint;
  readonly bytes: bigint;
}
export type Counters = Readonly<Record<keyof typeof counted, Count>>;

export const commentOf = (rule: NftRule): string | undefined => decodeComment(rule.userdata);

/** The counters of the rules by what their comments begin with. */
export function sumCounters(rules: readonly NftRule[], commentOfRule = commentOf): Counters {
  const keys = Object.keys(counted) as (keyof typeof counted)[];
  const sum = (key: keyof typeof counted): Count => {
    const counters = rules
      .filter((rule) => commentOfRule(rule)?.startsWith(`${key}:`))
      .flatMap(({ expressions }) => expressions)
      .filter((each) => each.kind === 'counter');
    return {
      packets: counters.reduce((total, { packets }) => total + packets, 0n),
      bytes: counters.reduce((total, { bytes }) => total + bytes, 0n),
    };
  };
  return Object.fromEntries(keys.map((key) => [key, sum(key)])) as unknown as Counters;
}
