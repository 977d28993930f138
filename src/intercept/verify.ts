/**
 * What should be there against what is: whether an interception is intact, and what it has counted. Pure: it is given the
 * kernel's lists, by install.ts for what this process installed, by installed.ts for what anybody did.
 */
import type { NftRule, NftTable, Route, Rule } from '../netlink/types.js';
import { decodeComment } from '../netlink/userdata.js';
import { counted } from './ruleset.js';

export interface Count {
  readonly packets: bigint;
  readonly bytes: bigint;
}
export type Counters = Readonly<Record<keyof typeof counted, Count>>;

export interface Expected {
  readonly nftTable: string;
  readonly nftRules: number;
  readonly rules: readonly Rule[];
  readonly routes: readonly Route[];
}

export interface Found {
  readonly tables: readonly NftTable[];
  /** Those of the table. */
  readonly nftRules: readonly NftRule[];
  readonly rules: readonly Rule[];
  readonly routes: readonly Route[];
}

/** What is not there any more, in words. */
export function missingOf(expected: Expected, found: Found): string[] {
  const { nftTable, nftRules } = expected;
  return [
    ...expected.rules
      .filter((rule) => !found.rules.some((each) => isSameRule(each, rule)))
      .map((rule) => `policy rule ${rule.priority} (${rule.family})`),
    ...expected.routes
      .filter(({ family, type, table }) =>
        found.routes.every((each) => each.family !== family || each.type !== type || each.table !== table),
      )
      .map(({ table, family }) => `route in table ${table} (${family})`),
    ...(found.tables.some(({ family, name }) => family === 'inet' && name === nftTable)
      ? []
      : [`table inet ${nftTable}`]),
    ...(found.nftRules.length === nftRules
      ? []
      : [`rules in table inet ${nftTable}: ${found.nftRules.length} of ${nftRules}`]),
  ];
}

function isSameRule(one: Rule, other: Rule): boolean {
  return (
    (['family', 'priority', 'action', 'iif', 'goto'] as const).every((key) => one[key] === other[key]) &&
    (one.action !== 'lookup' || one.table === other.table) &&
    one.fwmark?.value === other.fwmark?.value &&
    one.fwmark?.mask === other.fwmark?.mask
  );
}

export const commentOf = (rule: NftRule): string | undefined => decodeComment(rule.userdata);

/** The counters of the rules by what their comments begin with. */
export function sumCounters(rules: readonly NftRule[]): Counters {
  const keys = Object.keys(counted) as (keyof typeof counted)[];
  const sum = (key: keyof typeof counted): Count => {
    const counters = rules
      .filter((rule) => commentOf(rule)?.startsWith(`${key}:`))
      .flatMap(({ expressions }) => expressions)
      .filter((each) => each.kind === 'counter');
    return {
      packets: counters.reduce((total, { packets }) => total + packets, 0n),
      bytes: counters.reduce((total, { bytes }) => total + bytes, 0n),
    };
  };
  return Object.fromEntries(keys.map((key) => [key, sum(key)])) as unknown as Counters;
}
