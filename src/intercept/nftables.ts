/**
 * Plan -> nf_tables: the operations that make the table of ours, and those that change it while it is live. What is in it
 * says ruleset.ts. Pure.
 */
import type {
  NftChain,
  NftElement,
  NftElements,
  NftObject,
  NftOperation,
  NftRule,
  NftSet,
  NftTable,
} from '../netlink/types.js';
import { encodeComment, encodeSetUserdata } from '../netlink/userdata.js';
import { packAhead } from '../pack.js';
import type { Family, Fwmark } from '../types.js';
import { mangleSize } from './mangle.js';
import type { SetDeclaration } from './named-sets.js';
import { once } from './once.js';
import type { Plan, PlanFacts } from './plan.js';
import { counted, ruleSet } from './ruleset.js';
import {
  ANONYMOUS_SET,
  type AnonymousSet,
  datatype,
  expressionsOf,
  type RuleOfStatements,
  type Statement,
} from './statement.js';

// ---- the claim: what of the rest of the host belongs to the table -----------------------------------------------------

/**
 * The table's comment names the mark, routing table and priorities that belong to it, and how much there is of it, so that
 * any process can tell whose is what. So long as the table is there they are in use; policy rules and routes of ours that
 * no table claims are left over from a process that died.
 */
export interface Claim {
  readonly fwmark: Plan['fwmark'];
  readonly table: number;
  readonly priority: number;
  readonly families: readonly Family[];
  /** What this host itself sends has a policy rule of its own. */
  readonly ownHost: boolean;
  /**
   * How many rules the table has. Those that `onDown` adds are not among them. With backend `iptables`: how many chains there
   * are, and rules that lead into them.
   */
  readonly rules: number;
  readonly backend: Plan['backend'];
}

/** `0x1/0x3`, as iproute2 and iptables write it. */
export const fwmarkText = ({ value, mask }: Fwmark): string => `0x${value.toString(16)}/0x${mask.toString(16)}`;

export function claimText({ fwmark, table, priority, families, ownHost, rules, backend }: Claim): string {
  return `fwmark ${fwmarkText(fwmark)} table ${table} priority ${priority} ${families.join(' ')}${ownHost ? ' own-host' : ''} rules ${rules}${backend === 'iptables' ? ' iptables' : ''}`;
}

/** In a claim, or the name of a table, that is in another's way: nobody else has any of these. */
export const claimWords = ({ nftTable, table, priority }: PlanFacts): string[] => [
  ` table ${table} priority `,
  ` priority ${priority} ipv`,
  `${nftTable}\0`, // and not one that begins like this
];

export function claimOfPlan(plan: PlanFacts): string {
  const { fwmark, table, priority, families, backend } = plan;
  const ownHost = plan.ownHost !== undefined;
  const rules = backend === 'iptables' ? mangleSize(plan) : lastingRules(plan);
  return claimText({ fwmark, table, priority, families, ownHost, rules, backend });
}

function lastingRules(plan: PlanFacts): number {
  const lasting = ({ comment }: RuleOfStatements) => comment !== counted.dropped;
  return ruleSet(plan).chains.reduce((sum, { rules }) => sum + rules.filter(lasting).length, 0);
}

/** Behind the claim of a table that is being taken down on purpose: who watches it need not bring it back. */
const LEAVING = ', being taken down';
export const leaving = (claim: string): string => claim.replace(LEAVING, '') + LEAVING;
export const isLeaving = (claim: string): boolean => claim.endsWith(LEAVING);

export function parseClaim(comment: string): Claim | undefined {
  const match =
    /^fwmark 0x([0-9a-f]+)\/0x([0-9a-f]+) table (\d+) priority (\d+) (ipv4|ipv4 ipv6|ipv6)( own-host)? rules (\d+)( iptables)?$/.exec(
      comment.replace(LEAVING, ''),
    );
  if (!match) return undefined;
  const [, value = '', mask = '', table, priority, families = '', ownHost, rules, iptables] = match;
  return {
    fwmark: { value: Number.parseInt(value, 16), mask: Number.parseInt(mask, 16) },
    table: Number(table),
    priority: Number(priority),
    families: families.split(' ') as Family[],
    ownHost: ownHost !== undefined,
    rules: Number(rules),
    backend: iptables === undefined ? 'nftables' : 'iptables',
  };
}

// ---- words -> operations ------------------------------------------------------------------------------------------------

const FAMILY = 'inet' as const;

/** Owned: nobody else can change it, and the kernel deletes it when the socket that made it is closed, or lets go of it. */
const flagsOf: Record<Plan['lifetime'], NonNullable<NftTable['flags']>> = {
  process: ['owner'],
  persist: ['owner', 'persist'],
  permanent: [],
};

/** The table alone, as the claim it is. */
export const tableObject = once((plan: PlanFacts): NftTable => {
  const flags = flagsOf[plan.lifetime];
  return {
    kind: 'table',
    family: FAMILY,
    name: plan.nftTable,
    ...(flags.length > 0 && { flags }),
    userdata: encodeComment(claimOfPlan(plan)),
  };
});

/** In the order in which `nft -f` sends a table: chains, sets with their elements, rules. */
export function nftablesOperations(plan: PlanFacts): NftOperation[] {
  const { sets, chains } = ruleSet(plan);
  const batch = newBatch(plan);
  batch.add(tableObject(plan));
  for (const { name, base } of chains) {
    const chain: Draft<NftChain> = { kind: 'chain', family: FAMILY, table: plan.nftTable, name };
    if (base) {
      chain.type = base.type;
      chain.hook = base.hook;
      chain.priority = base.priority.number;
      chain.policy = 'accept';
    }
    batch.add(chain);
  }
  for (const set of sets) batch.addSet(factsOf(set.declaration), set.elements);
  for (const { name, rules } of chains) for (const rule of rules) batch.addRule(name, rule);
  return batch.operations;
}

/**
 * From one plan to another that only has some rules more or less in the same chains: those are added behind the rule that
 * they follow, or deleted; all others stay, and so do their counters. `installed` is what the kernel lists for `before`.
 */
export function ruleChanges(before: PlanFacts, after: PlanFacts, installed: readonly NftRule[]): NftOperation[] {
  const batch = newBatch(after);
  const text = ({ statements, comment }: RuleOfStatements) =>
    [...statements.map((each) => each.text), comment].join(' ');
  const old = ruleSet(before).chains;
  for (const { name, rules } of ruleSet(after).chains) {
    const present = installed.filter(({ chain }) => chain === name);
    const known = old.find((chain) => chain.name === name)?.rules.map(text) ?? [];
    const wanted = rules.map(text);
    present.forEach((rule, index) => {
      if (!wanted.includes(known[index] as string)) batch.delete(rule);
    });
    // Each goes right behind its position, so of several at one position the last is sent first.
    const added = rules.flatMap((rule, index) => {
      if (known.includes(wanted[index] as string)) return [];
      const follows = wanted.slice(0, index).findLast((each) => known.includes(each)) as string;
      return [{ rule, position: present[known.indexOf(follows)]?.handle }];
    });
    for (const { rule, position } of added.reverse()) batch.addRule(name, rule, position);
  }
  return batch.operations;
}

/**
 * An object that is being written, member by member. To the engine a copy with more members (`{ ...object, more }`) is of a new shape
 * each time, which makes all that reads it slow.
 */
type Draft<T> = { -readonly [K in keyof T]: T[K] };

function newBatch({ nftTable: table }: PlanFacts) {
  const operations: NftOperation[] = [];
  const add = (object: NftObject) => operations.push({ verb: 'add', object });
  let lastId = 0;
  const addSet = (facts: SetFacts, elements: readonly NftElement[]): number => {
    const { name, flags, keyType, keyLength, userdata, size, timeoutMs } = facts;
    const id = ++lastId;
    const set: Draft<NftSet> = { kind: 'set', family: FAMILY, table, name, id, flags, keyType, keyLength, userdata };
    if (size !== undefined) set.size = size;
    if (timeoutMs !== undefined) set.timeoutMs = timeoutMs;
    add(set);
    if (elements.length > 0) {
      const into: Draft<NftElements> = { kind: 'elements', family: FAMILY, table, set: name, elements };
      if (name === ANONYMOUS_SET) into.setId = id;
      add(into);
    }
    return id;
  };
  /** With the sets without a name that it looks in: inside the batch they go by their numbers. */
  const withSets = (statement: Statement): Statement => {
    const { anonymousSet, expressions } = statement;
    if (!anonymousSet) return statement;
    const setId = addSet(factsOfAnonymous(anonymousSet), anonymousSet.elements);
    const numbered = expressions.map((each) => (each.kind === 'lookup' ? { ...each, setId } : each));
    return { ...statement, expressions: numbered };
  };
  const addRule = (chain: string, words: RuleOfStatements, position?: bigint) => {
    const expressions = words.isFixed ? fixedExpressions(words) : expressionsOf(words.statements.map(withSets));
    const rule: Draft<NftRule> = { kind: 'rule', family: FAMILY, table, chain, expressions };
    if (position !== undefined) rule.position = position;
    if (words.comment !== undefined) rule.userdata = encodeComment(words.comment);
    add(rule);
  };
  const remove = (object: NftRule) => operations.push({ verb: 'delete', object });
  return { operations, add, addSet, addRule, delete: remove };
}

const fixedExpressions = once(({ statements }: RuleOfStatements) =>
  Object.freeze(packAhead(expressionsOf(statements))),
);

type SetFacts = Required<Pick<NftSet, 'name' | 'flags' | 'keyType' | 'keyLength' | 'userdata'>> &
  Pick<NftSet, 'size' | 'timeoutMs'>;
const factsOf = once((set: SetDeclaration): SetFacts => {
  const types = set.type.map((type) => datatype[type]);
  const interval = set.flags.includes('interval');
  return {
    name: set.name,
    flags: [
      ...(interval ? ['interval' as const] : []),
      ...(set.flags.includes('timeout') ? ['timeout' as const] : []),
      ...(set.flags.includes('dynamic') ? ['eval' as const] : []),
    ],
    // A concatenation's type is the list of its fields', six bits each; its fields are padded to 4 bytes.
    keyType: types.reduce((sum, { number }) => sum * 64 + number, 0),
    keyLength:
      types.length === 1
        ? (types[0]?.bytes as number)
        : types.reduce((sum, { bytes }) => sum + Math.ceil(bytes / 4) * 4, 0),
    ...(set.size !== undefined && { size: set.size }),
    ...(set.timeoutSeconds !== undefined && { timeoutMs: BigInt(set.timeoutSeconds * 1000) }),
    userdata: encodeSetUserdata({
      keyByteorder: types.length === 1 ? (types[0]?.byteorder ?? 'none') : 'none',
      autoMerge: interval,
      ...(types.length > 1 && { keyExpression: { kind: 'concatenation' } }),
    }),
  };
});

const factsOfAnonymous = once(({ type, keyExpression, elements }: AnonymousSet): SetFacts => {
  const { number, bytes, byteorder } = datatype[type];
  return {
    name: ANONYMOUS_SET,
    flags: ['anonymous', 'constant'],
    keyType: number,
    keyLength: bytes,
    size: elements.length,
    userdata: encodeSetUserdata({ keyByteorder: byteorder, keyExpression }),
  };
});
