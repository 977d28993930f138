/**
 * Plan -> nf_tables: the one table of ours, as named sets and chains of rules, and as the operations that make it.
 * The rule set itself is in this file, each rule with its reason. Pure.
 */
import type { NftElement, NftObject, NftOperation, NftSet, NftTable } from '../netlink/types.js';
import { encodeComment, encodeSetUserdata } from '../netlink/userdata.js';
import type { Family } from '../types.js';
import type { Plan, PrefixRanges } from './plan.js';
import { addressRange, formatRange, intervalElements, portRange, type Range, type RangeType } from './ranges.js';
import {
  ANONYMOUS_SET,
  accept,
  address,
  counter,
  type Datatype,
  datatype,
  drop,
  expressionsOf,
  flowIn,
  goTo,
  iifnameNotIn,
  jump,
  l4protoIn,
  nfprotoIsNot,
  notFromLoopback,
  type RuleOfStatements,
  rememberFlow,
  returnToCaller,
  type Statement,
  setMark,
  socketTransparent,
  socketWildcard,
  syn,
  tcp,
  tcpDport,
  toThisHost,
  tproxy,
} from './statement.js';

export type PlanFacts = Omit<Plan, 'routes' | 'rules' | 'nftables' | 'toString'>;

/** A set or chain in both of its forms is made of these. */
export interface RuleSet {
  readonly table: string;
  readonly comment: string;
  readonly sets: readonly SetOfRules[];
  readonly chains: readonly ChainOfRules[];
}
export interface SetOfRules {
  readonly name: string;
  readonly type: readonly Datatype[];
  readonly flags: readonly ('interval' | 'dynamic' | 'timeout')[];
  readonly size?: number;
  readonly timeoutSeconds?: number;
  /** As nft prints them. */
  readonly elementTexts: readonly string[];
  readonly elements: readonly NftElement[];
}
export interface ChainOfRules {
  readonly name: string;
  readonly base?: {
    readonly type: 'filter';
    readonly hook: 'prerouting';
    readonly priority: { readonly name: string; readonly number: number };
  };
  readonly rules: readonly RuleOfStatements[];
}

/** Which rules count, by the comment they carry: `counters()` gives their sums. */
export const counted = {
  intercepted: 'intercepted: new connection, to the proxy',
  remembered: 'remembered: answer to a SYN cookie, to the proxy',
  diverted: 'diverted: to the transparent socket it belongs to',
  dropped: 'dropped: nobody listens (onDown closed)',
} as const;

const familyDigit: Record<Family, '4' | '6'> = { ipv4: '4', ipv6: '6' };
const setFor = (name: string, family: Family) => `${name}${familyDigit[family]}`;
/** How long a connection's SYN is remembered: longer than any SYN cookie is valid. */
const FLOW_SECONDS = 60;
const FLOW_SIZE = 65536;

/** The table as words. What is not intercepted at all (`intercept: {}`) needs the divert part alone. */
export function ruleSet(plan: PlanFacts): RuleSet {
  const { families, fwmark } = plan;
  const intercepts = plan.tcp.length > 0;
  const both = <T>(make: (family: Family) => T): T[] => families.map(make);
  const deliver = setMark(fwmark.value, fwmark.mask);
  const toProxy = (family?: Family) =>
    tproxy(plan.port, plan.address === undefined ? family : (families[0] as Family), plan.address);
  const closed = plan.onDown === 'closed';

  const prerouting: RuleOfStatements[] = [
    ...(families.length === 1 ? [{ statements: [nfprotoIsNot(families[0] as Family), returnToCaller] }] : []),
    // A SYN takes a way of its own: it may open a new connection on the tuple of one in TIME_WAIT, which `divert` would
    // hand to the old socket.
    { statements: [syn, goTo('syn')] },
    // Before everything else, also for ICMP: without "fragmentation needed" a connection from a foreign address cannot
    // learn its path's MTU. So connections already open are never touched either: only what has a transparent socket is.
    { statements: [l4protoIn('tcp', 'icmp', 'ipv6-icmp'), jump('divert')] },
    // The answer to a SYN cookie has no socket, not even half of one, and is no SYN: we know it by the SYN we saw.
    ...(intercepts
      ? both((family) => ({
          statements: [tcp, flowIn(family, setFor('flows', family)), toProxy(family), deliver, counter, accept],
          comment: counted.remembered,
        }))
      : []),
    ...(intercepts && closed
      ? both((family) => ({
          statements: [tcp, flowIn(family, setFor('flows', family)), counter, drop],
          comment: counted.dropped,
        }))
      : []),
  ];

  const ours: Statement[] = [notFromLoopback, tcpDport('tcp_ports')];
  const synChain: RuleOfStatements[] = [
    // Listeners on foreign addresses come first. Only full sockets match here: a half-open or TIME_WAIT one ends the rule
    // at `socket wildcard`, and tproxy, which knows how to treat it, gets the packet.
    { statements: [socketWildcard(0), socketTransparent, deliver, accept] },
    ...(intercepts
      ? [
          { statements: [jump('skip')] },
          // tproxy ends the rule when nobody listens, so that the packet goes its own way (`open`) or to the drop behind it.
          { statements: [...ours, toProxy(), deliver, counter, goTo('remember')], comment: counted.intercepted },
          ...(closed ? [{ statements: [...ours, counter, drop], comment: counted.dropped }] : []),
        ]
      : []),
  ];

  // A chain of its own behind `goto`: a full set ends the rule that updates it, and the drop of `closed` must not be reached.
  const remember: RuleOfStatements[] = [
    ...both((family) => ({ statements: [rememberFlow(family, setFor('flows', family)), accept] })),
    { statements: [accept] },
  ];

  const divert: RuleOfStatements[] = [
    // Written as a `return` for wildcard listeners, not as a match on `wildcard 0`: that would never match a socket in
    // TIME_WAIT or SYN_RECV, whose last packets would then go to the real client, to be answered with a reset.
    { statements: [socketWildcard(1), returnToCaller] },
    { statements: [socketTransparent, deliver, counter, accept], comment: counted.diverted },
  ];

  /** Why a new connection is left alone. `accept` ends our chain only; other tables still see the packet. */
  const skip: RuleOfStatements[] = [
    { statements: [toThisHost, accept] },
    ...(plan.interfaces ? [{ statements: [iifnameNotIn('interfaces'), accept] }] : []),
    ...both((family) => ({ statements: [address(family, 'daddr', 'in', setFor('exclude_to', family)), accept] })),
    ...both((family) => ({ statements: [address(family, 'saddr', 'in', setFor('exclude_from', family)), accept] })),
    ...(plan.to
      ? both((family) => ({ statements: [address(family, 'daddr', 'not in', setFor('to', family)), accept] }))
      : []),
    ...(plan.from
      ? both((family) => ({ statements: [address(family, 'saddr', 'not in', setFor('from', family)), accept] }))
      : []),
  ];

  const chains: ChainOfRules[] = [
    {
      name: 'prerouting',
      base: { type: 'filter', hook: 'prerouting', priority: { name: 'mangle', number: -150 } },
      rules: prerouting,
    },
    { name: 'syn', rules: synChain },
    ...(intercepts ? [{ name: 'remember', rules: remember }] : []),
    { name: 'divert', rules: divert },
    ...(intercepts ? [{ name: 'skip', rules: skip }] : []),
  ];
  const lasting = chains.flatMap(({ rules }) => rules).filter(({ comment }) => comment !== counted.dropped);

  return {
    table: plan.nftTable,
    comment: claimText({ ...plan, rules: lasting.length }),
    sets: intercepts
      ? [
          intervalSet('tcp_ports', 'inet_service', portRange, plan.tcp),
          ...both((family) => prefixSet('exclude_to', family, plan.exclude.to)),
          ...both((family) => prefixSet('exclude_from', family, plan.exclude.from)),
          ...(plan.to ? both((family) => prefixSet('to', family, plan.to as PrefixRanges)) : []),
          ...(plan.from ? both((family) => prefixSet('from', family, plan.from as PrefixRanges)) : []),
          ...(plan.interfaces ? [interfaceSet('interfaces', plan.interfaces)] : []),
          ...both((family) => flowSet(family)),
        ]
      : [],
    chains,
  };
}

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
  /** How many rules the table has. Those that `onDown` adds are not among them. */
  readonly rules: number;
}

export function claimText({ fwmark, table, priority, families, rules }: Claim): string {
  const mark = `0x${fwmark.value.toString(16)}/0x${fwmark.mask.toString(16)}`;
  return `fwmark ${mark} table ${table} priority ${priority} ${families.join(' ')} rules ${rules}`;
}

export function parseClaim(comment: string): Claim | undefined {
  const match =
    /^fwmark 0x([0-9a-f]+)\/0x([0-9a-f]+) table (\d+) priority (\d+) (ipv4|ipv4 ipv6|ipv6) rules (\d+)$/.exec(comment);
  if (!match) return undefined;
  const [, value = '', mask = '', table, priority, families = '', rules] = match;
  return {
    fwmark: { value: Number.parseInt(value, 16), mask: Number.parseInt(mask, 16) },
    table: Number(table),
    priority: Number(priority),
    families: families.split(' ') as Family[],
    rules: Number(rules),
  };
}

// ---- sets ---------------------------------------------------------------------------------------------------------------

function intervalSet(name: string, type: Datatype, rangeType: RangeType, ranges: readonly Range[]): SetOfRules {
  return {
    name,
    type: [type],
    flags: ['interval'],
    elementTexts: ranges.map((range) => formatRange(rangeType, range)),
    elements: intervalElements(rangeType, ranges),
  };
}

function prefixSet(name: string, family: Family, prefixes: PrefixRanges): SetOfRules {
  return intervalSet(setFor(name, family), `${family}_addr`, addressRange(family), prefixes[family]);
}

function interfaceSet(name: string, interfaces: readonly string[]): SetOfRules {
  return {
    name,
    type: ['ifname'],
    flags: [],
    elementTexts: interfaces.map((each) => `"${each}"`),
    elements: interfaces.map((each) => ({
      key: Buffer.alloc(datatype.ifname.bytes, `${each}\0`, 'latin1').fill(0, each.length),
    })),
  };
}

function flowSet(family: Family): SetOfRules {
  return {
    name: setFor('flows', family),
    type: [`${family}_addr`, 'inet_service', `${family}_addr`, 'inet_service'],
    flags: ['dynamic', 'timeout'],
    size: FLOW_SIZE,
    timeoutSeconds: FLOW_SECONDS,
    elementTexts: [],
    elements: [],
  };
}

// ---- words -> operations ------------------------------------------------------------------------------------------------

const FAMILY = 'inet' as const;

/** The table alone, as the claim it is. `process`: the kernel deletes it when the socket that made it is closed. */
export function tableObject(plan: PlanFacts): NftTable {
  return {
    kind: 'table',
    family: FAMILY,
    name: plan.nftTable,
    ...(plan.lifetime === 'process' && { flags: ['owner' as const] }),
    userdata: encodeComment(ruleSet(plan).comment),
  };
}

/** In the order in which `nft -f` sends a table: chains, sets with their elements, rules. */
export function nftablesOperations(plan: PlanFacts): NftOperation[] {
  const { table, sets, chains } = ruleSet(plan);
  const objects: NftObject[] = [tableObject(plan)];
  let setId = 0;
  const addSet = (set: Omit<NftSet, 'kind' | 'family' | 'table' | 'id'>, elements: readonly NftElement[]) => {
    const id = ++setId;
    objects.push({ kind: 'set', family: FAMILY, table, id, ...set });
    if (elements.length > 0)
      objects.push({ kind: 'elements', family: FAMILY, table, set: set.name, setId: id, elements });
    return id;
  };

  for (const { name, base } of chains)
    objects.push({
      kind: 'chain',
      family: FAMILY,
      table,
      name,
      ...(base && { type: base.type, hook: base.hook, priority: base.priority.number, policy: 'accept' as const }),
    });
  const ids = new Map<string, number>();
  for (const set of sets) ids.set(set.name, addSet(setObject(set), set.elements));
  for (const chain of chains)
    for (const rule of chain.rules) {
      for (const { anonymousSet } of rule.statements)
        if (anonymousSet) {
          const { type, keyExpression, elements } = anonymousSet;
          const set = {
            name: ANONYMOUS_SET,
            flags: ['anonymous', 'constant'] as const,
            keyType: datatype[type].number,
            keyLength: datatype[type].bytes,
            size: elements.length,
            userdata: encodeSetUserdata({ keyByteorder: datatype[type].byteorder, keyExpression }),
          };
          ids.set(ANONYMOUS_SET, addSet(set, elements));
        }
      objects.push({
        kind: 'rule',
        family: FAMILY,
        table,
        chain: chain.name,
        expressions: expressionsOf(rule.statements).map((expression) => {
          const id = 'set' in expression ? ids.get(expression.set) : undefined;
          return id === undefined ? expression : { ...expression, setId: id };
        }),
        ...(rule.comment !== undefined && { userdata: encodeComment(rule.comment) }),
      });
    }
  return objects.map((object) => ({ verb: 'add', object }));
}

function setObject(set: SetOfRules): Omit<NftSet, 'kind' | 'family' | 'table' | 'id'> {
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
}
