/**
 * iptables' table `mangle` as the kernel has it, and what is done with it: the operations that put our chains into it, change
 * them, and take them out again, and what of them is missing. Somebody else's chains and rules are never touched; the table
 * and its built-in chains are made as iptables makes them where they are not there, and go again when nobody uses them. Pure.
 */
import { InterceptError } from '../errors.js';
import type { NftChain, NftExpression, NftFamily, NftOperation, NftRule, NftTable } from '../netlink/types.js';
import { decodeComment, encodeComment } from '../netlink/userdata.js';
import type { Family } from '../types.js';
import { canonical } from './canonical.js';
import { type ChainOfWords, chainName, iptablesChains, LONGEST_NAME } from './iptables.js';
import { expressionsOf, jump, PORTS, type RuleOfWords } from './iptables-words.js';
import type { PlanFacts } from './plan.js';
import { addressRange, formatRange, fromBytes, merge, portRange, type Range } from './ranges.js';

const TABLE = 'mangle';
const families: readonly (readonly [NftFamily, Family])[] = [
  ['ip', 'ipv4'],
  ['ip6', 'ipv6'],
];

/** Of both families. */
export interface Mangle {
  readonly tables: readonly NftTable[];
  readonly chains: readonly NftChain[];
  readonly rules: readonly NftRule[];
}
export const nothing: Mangle = { tables: [], chains: [], rules: [] };

export const isMangle = (family: NftFamily, table: string) =>
  table === TABLE && families.some(([each]) => each === family);

/** By this comment, which iptables does not show, the next of us knows what it may delete when it is empty. */
const OURS = encodeComment('made by linux-tproxy');
const isOurs = ({ userdata }: NftTable | NftChain) => decodeComment(userdata) === decodeComment(OURS);

/** `-j` and `-g`. */
const targetOf = ({ expressions }: NftRule): string | undefined =>
  expressions.flatMap((each) => (each.kind === 'verdict' && each.chain !== undefined ? [each.chain] : []))[0];

/** The name of the interception that a chain belongs to. */
export function nameOfChain(chain: string): string | undefined {
  return new RegExp(`^linux-tproxy-([A-Za-z0-9_.-]{1,${LONGEST_NAME}})(/[a-z-]+)?$`).exec(chain)?.[1];
}

export function namesInMangle(chains: readonly NftChain[]): string[] {
  const names = chains.flatMap(({ family, table, name }) => (isMangle(family, table) ? [nameOfChain(name) ?? []] : []));
  return [...new Set(names.flat())];
}

const builtIn = {
  PREROUTING: { type: 'filter', hook: 'prerouting' },
  OUTPUT: { type: 'route', hook: 'output' },
} as const;
const PRIORITY = -150;

// ---- in -----------------------------------------------------------------------------------------------------------------

interface ChainOfFamily extends ChainOfWords {
  readonly family: NftFamily;
}
const chainsOf = (plan: PlanFacts): ChainOfFamily[] =>
  families.flatMap(([family, spoken]) =>
    plan.families.includes(spoken) ? iptablesChains(plan, spoken).map((each) => ({ ...each, family })) : [],
  );

/** All of it. */
export const mangleOperations = (plan: PlanFacts, found: Mangle): NftOperation[] => [
  ...mangleFrame(plan, found),
  ...mangleRules(plan),
];

/** The chains, and the way into them, with nothing in them yet. */
export function mangleFrame(plan: PlanFacts, found: Mangle): NftOperation[] {
  return families.flatMap(([family]): NftOperation[] => {
    const chains = chainsOf(plan).filter((chain) => chain.family === family);
    if (chains.length === 0) return [];
    for (const chain of found.chains) if (chain.family === family && chain.name in builtIn) checkBuiltIn(chain);
    const isMissing = (kind: 'tables' | 'chains', name: string) =>
      !found[kind].some((each) => each.family === family && each.name === name);
    return [
      {
        verb: 'add',
        object: { kind: 'table', family, name: TABLE, ...(isMissing('tables', TABLE) && { userdata: OURS }) },
      },
      ...chains.map(
        ({ name }): NftOperation => ({ verb: 'create', object: { kind: 'chain', family, table: TABLE, name } }),
      ),
      ...chains
        .flatMap(({ from }) => (from && isMissing('chains', from.chain) ? [from.chain] : []))
        .map((name): NftOperation => {
          const base = { ...builtIn[name], priority: PRIORITY, policy: 'accept' as const };
          return { verb: 'create', object: { kind: 'chain', family, table: TABLE, name, ...base, userdata: OURS } };
        }),
      ...chains.flatMap(waysIn),
    ];
  });
}

/** Somebody may have made one of that name by `nft`, where no packet comes by. */
function checkBuiltIn({ family, name, type, hook, priority }: NftChain): void {
  const expected = builtIn[name as keyof typeof builtIn];
  if (type === expected.type && hook === expected.hook && priority === PRIORITY) return;
  throw new InterceptError(
    'ERR_TPROXY_UNSUPPORTED',
    `The chain ${name} of table ${family} ${TABLE} is not as iptables makes it, and iptables refuses to work with it, too. Remove it (\`nft delete chain ${family} ${TABLE} ${name}\`), or use backend 'nftables'`,
    'check',
  );
}

export const mangleRules = (plan: PlanFacts): NftOperation[] => chainsOf(plan).flatMap(rulesOf);

const rulesOf = ({ family, name, rules }: ChainOfFamily): NftOperation[] =>
  rules.map((rule) => ({ verb: 'add', object: ruleObject(family, name, rule) }));

/** From the built-in chain into ours. */
function waysIn({ family, name, from }: ChainOfFamily): NftOperation[] {
  if (!from) return [];
  const object = ruleObject(family, from.chain, { matches: [], target: jump(name) });
  return [from.at === 'end' ? { verb: 'add', object } : { verb: 'insert', object }];
}

function ruleObject(family: NftFamily, chain: string, rule: RuleOfWords): NftRule {
  const compat = rule.matches.find((each) => each.compat)?.compat ?? { compatProtocol: 0, compatFlags: 0 };
  return { kind: 'rule', family, table: TABLE, chain, expressions: expressionsOf(rule), ...compat };
}

/** The chains that are other ones in `after`, their rules all anew. */
export function mangleChanges(before: PlanFacts, after: PlanFacts): NftOperation[] {
  const text = (chain: ChainOfFamily | undefined) => canonical(chain?.rules.map(expressionsOf));
  const old = chainsOf(before);
  return chainsOf(after)
    .filter((chain, index) => text(chain) !== text(old[index]))
    .flatMap((chain) => [
      { verb: 'flush', object: { kind: 'chain', family: chain.family, table: TABLE, name: chain.name } },
      ...rulesOf(chain),
    ]);
}

// ---- out ----------------------------------------------------------------------------------------------------------------

interface Ours {
  readonly chains: readonly NftChain[];
  /** The rules that lead into them. */
  readonly leading: readonly NftRule[];
}

function oursIn(found: Mangle, name: string, family: NftFamily): Ours {
  const chains = found.chains.filter((chain) => chain.family === family && nameOfChain(chain.name) === name);
  const isOne = (chain: string | undefined) => chains.some((each) => each.name === chain);
  return {
    chains,
    leading: found.rules.filter((rule) => rule.family === family && !isOne(rule.chain) && isOne(targetOf(rule))),
  };
}

/** In the order in which the kernel lets go of them. By handle: of chains that others have made meanwhile all of it fails. */
const deleting = ({ chains, leading }: Ours): NftOperation[] => [
  ...chains.map((object): NftOperation => ({ verb: 'flush', object })),
  ...[...leading, ...chains].map((object): NftOperation => ({ verb: 'delete', object })),
];

/** One batch that makes all of it anew. */
export function mangleRebuilt(plan: PlanFacts, found: Mangle): NftOperation[] {
  const chains = found.chains.filter((chain) => nameOfChain(chain.name) !== plan.name);
  return [
    ...families.flatMap(([family]) => deleting(oursIn(found, plan.name, family))),
    ...mangleOperations(plan, { ...found, chains }),
  ];
}

/**
 * Batches that take the chains of an interception out, and the rules that lead there, each for itself; the last are for what
 * is nobody's any more, and fail with EBUSY where it is somebody's.
 */
export function mangleRemoval(name: string, found: Mangle): NftOperation[][] {
  return families
    .flatMap(([family]) => [
      deleting(oursIn(found, name, family)),
      ...[...found.chains.filter(({ policy }) => policy === 'accept'), ...found.tables]
        .filter((each) => each.family === family && isOurs(each))
        .map((object): NftOperation[] => [{ verb: 'deleteEmpty', object }]),
    ])
    .filter((batch) => batch.length > 0);
}

// ---- is it there --------------------------------------------------------------------------------------------------------

/** What is missing or not as it was, in words. */
export function mangleLosses(plan: PlanFacts, found: Mangle): string[] {
  return chainsOf(plan).flatMap((chain) => {
    const { family, name, from, rules } = chain;
    const what = `chain ${name} in table ${family} ${TABLE}`;
    if (!found.chains.some((each) => each.family === family && each.name === name)) return [what];
    const present = found.rules.filter((each) => each.family === family && each.chain === name);
    const meaning = (expressions: readonly NftExpression[]) =>
      expressions.map((each) => (each.kind === 'counter' ? each.kind : each));
    return [
      ...(canonical(present.map((each) => meaning(each.expressions))) ===
      canonical(rules.map((each) => meaning(expressionsOf(each))))
        ? []
        : [`rules of ${what}`]),
      ...(from && !leadsTo(found, family, from.chain, name) ? [`rule from ${from.chain} to ${what}`] : []),
    ];
  });
}

const leadsTo = ({ rules }: Mangle, family: NftFamily, from: string, to: string) =>
  rules.some((rule) => rule.family === family && rule.chain === from && targetOf(rule) === to);

/** What the claim counts: how many chains there are and rules that lead to them. What is in the chains may change. */
export const mangleSize = (plan: PlanFacts) => chainsOf(plan).reduce((sum, { from }) => sum + (from ? 2 : 1), 0);
export const sizeOfMangle = (name: string, { chains, rules }: Mangle) =>
  chains.filter((chain) => nameOfChain(chain.name) === name).length +
  rules.filter((rule) => rule.chain in builtIn && nameOfChain(targetOf(rule) ?? '') === name).length;

// ---- what it says -------------------------------------------------------------------------------------------------------

/** The comment of an iptables rule. */
export function commentOfRule({ expressions }: NftRule): string | undefined {
  const found = expressions.find((each) => each.kind === 'match' && each.name === 'comment');
  return found?.kind === 'match' ? textOf(found.info) : undefined;
}
const textOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1').replace(/\0.*$/s, '');

/** Where TPROXY delivers to: struct xt_tproxy_target_info_v1. */
export function listenerOfMangle(rules: readonly NftRule[]): { port?: number; address?: string } {
  for (const { family, expressions } of rules)
    for (const each of expressions)
      if (each.kind === 'target' && each.name === 'TPROXY') {
        const type = addressRange(family === 'ip' ? 'ipv4' : 'ipv6');
        const value = fromBytes(each.info.subarray(8, 8 + type.bytes));
        return {
          port: Number(fromBytes(each.info.subarray(24, 26))),
          ...(value !== 0n && { address: formatRange(type, { start: value, end: value }) }),
        };
      }
  return {};
}

/** What the live chains hold, under the names of the nf_tables backend's sets. */
export function setsOfMangle(name: string, { chains, rules }: Mangle): Record<string, string[]> {
  const sets: Record<string, string[]> = {};
  const table = { nftTable: `linux-tproxy-${name}` };
  const put = (set: string, ranges: Range[], type: Parameters<typeof formatRange>[0]) => {
    sets[set] = merge(ranges).map((range) => formatRange(type, range));
  };
  const rulesIn = (part: string, family?: NftFamily) =>
    rules.filter((rule) => rule.chain === chainName(table, part) && (!family || rule.family === family));
  for (const [index, protocol] of [
    [6, 'tcp'],
    [17, 'udp'],
  ] as const) {
    const of = rulesIn('port', chains.find((chain) => chain.name === chainName(table, 'port'))?.family).filter(
      ({ expressions: [, second] }) => second?.kind === 'cmp' && second.data[0] === index,
    );
    if (chains.some((chain) => chain.name === chainName(table, protocol)))
      put(`${protocol}_ports`, of.flatMap(portsOf), portRange);
  }
  for (const [family, spoken] of families) {
    const type = addressRange(spoken);
    const digit = spoken === 'ipv4' ? '4' : '6';
    const addresses = (part: string, which: 'saddr' | 'daddr') =>
      rulesIn(part, family).flatMap((rule) => prefixOf(rule, spoken, which));
    const has = (part: string) =>
      chains.some((chain) => chain.family === family && chain.name === chainName(table, part));
    if (has('new')) {
      put(`exclude_to${digit}`, addresses('new', 'daddr'), type);
      put(`exclude_from${digit}`, addresses('new', 'saddr'), type);
    }
    if (has('to')) put(`to${digit}`, addresses('to', 'daddr'), type);
    if (has('from')) put(`from${digit}`, addresses('from', 'saddr'), type);
  }
  const interfaces = rulesIn('in').flatMap(({ expressions: [, name] }) =>
    name?.kind === 'cmp' ? [textOf(name.data)] : [],
  );
  if (interfaces.length > 0) sets['interfaces'] = [...new Set(interfaces)];
  return sets;
}

/** struct xt_multiport_v1; without it all ports are meant. */
function portsOf({ expressions }: NftRule): Range[] {
  const multiport = expressions.find((each) => each.kind === 'match' && each.name === 'multiport');
  if (multiport?.kind !== 'match') return [{ start: 1n, end: 65535n }];
  const { info } = multiport;
  const ports = new Uint16Array(info.slice(2, 2 + 2 * PORTS).buffer);
  const ranges: Range[] = [];
  for (let index = 0; index < (info[1] ?? 0); index++) {
    const start = BigInt(ports[index] ?? 0);
    if (info[32 + index]) index++;
    ranges.push({ start, end: BigInt(ports[index] ?? 0) });
  }
  return ranges;
}

function prefixOf({ expressions }: NftRule, family: Family, which: 'saddr' | 'daddr'): Range[] {
  const { bytes } = addressRange(family);
  const offset = { ipv4: { saddr: 12, daddr: 16 }, ipv6: { saddr: 8, daddr: 24 } }[family][which];
  const payload = expressions.find((each) => each.kind === 'payload');
  const compared = expressions.find((each) => each.kind === 'cmp');
  if (payload?.kind !== 'payload' || payload.offset !== offset || compared?.kind !== 'cmp') return [];
  const mask = expressions.find((each) => each.kind === 'bitwise');
  const width = BigInt(8 * (bytes - compared.data.length));
  const start = fromBytes(compared.data) << width;
  const rest = mask?.kind === 'bitwise' ? (1n << BigInt(8 * bytes)) - 1n - fromBytes(mask.mask) : (1n << width) - 1n;
  return [{ start, end: start + rest }];
}
