/**
 * The rule set itself: Plan -> the one table of ours, as words: chains of rules, each with its reason. Its sets are in
 * named-sets.ts; nftables.ts makes kernel objects of them, text.ts the text that `nft` reads. Pure.
 */
import type { Family } from '../types.js';
import { namedSets, perFamily, type SetOfRules, setFor } from './named-sets.js';
import { once } from './once.js';
import type { OwnHost, Plan, PlanFacts } from './plan.js';
import { isAllPorts } from './ranges.js';
import {
  accept,
  address,
  cgroup,
  counter,
  ctDirectionOriginal,
  dport,
  drop,
  flowIn,
  fromLoopback,
  goTo,
  iifnameIn,
  jump,
  l4proto,
  l4protoIn,
  l4protoIsNot,
  markIs,
  markIsNot,
  nfproto,
  nfprotoIsNot,
  notFromLoopback,
  type RuleOfStatements,
  redirect,
  rememberFlow,
  returnToCaller,
  type Statement,
  setMark,
  setZone,
  skuidIn,
  socketMark,
  socketMarkIsNot,
  socketTransparent,
  socketWildcard,
  syn,
  toThisHost,
  toThisHostAlone,
  tproxy,
} from './statement.js';

/** A set or chain in both of its forms is made of these. */
export interface RuleSet {
  readonly sets: readonly SetOfRules[];
  readonly chains: readonly ChainOfRules[];
}
export interface ChainOfRules {
  readonly name: string;
  readonly base?: {
    readonly type: 'filter' | 'route' | 'nat';
    readonly hook: 'prerouting' | 'output';
    readonly priority: { readonly name: string; readonly number: number };
  };
  readonly rules: readonly RuleOfStatements[];
}

/** Which rules count, by how the comment begins that they carry: `counters()` gives their sums. */
export const counted = {
  intercepted: 'intercepted: new connection, to the proxy',
  remembered: 'remembered: answer to a SYN cookie, to the proxy',
  diverted: 'diverted: to the transparent socket it belongs to',
  dropped: 'dropped: nobody listens (onDown closed)',
} as const;
export const DATAGRAM = 'intercepted: datagram, to the proxy';
export const OWN = 'intercepted: of this host itself, to the proxy';
const DROPPED_OWN = 'dropped: nobody listens, and it cannot be sent on';
/** Counts too, but the packet comes by again, and is counted as intercepted then. */
export const ROUND = 'sent by this host itself: round by the loopback interface';

/**
 * Others restore a packet's whole mark from conntrack at priority mangle (wg-quick, `CONNMARK --restore-mark`). So what reads
 * a mark that we have set comes before them, and what sets one, and must have the last word, behind.
 */
const BEFORE_MANGLE = { name: 'mangle - 1', number: -151 } as const;
const BEHIND_MANGLE = { name: 'mangle + 1', number: -149 } as const;
const RAW = { name: 'raw', number: -300 } as const;
const DSTNAT = { name: 'dstnat', number: -100 } as const;

/** The table as words. */
export const ruleSet = once(rulesOf);

/** What is not intercepted at all (`intercept: {}`) needs the divert part alone. */
function rulesOf(plan: PlanFacts): RuleSet {
  const { tcp, udp, ownHost, mode, zone } = plan;
  const intercepts = tcp !== undefined || udp !== undefined;
  if (mode === 'redirect') return redirectRuleSet(plan);
  return {
    sets: namedSets(plan).filter((set) => intercepts || isDynamic(set)),
    chains: [
      {
        name: 'prerouting',
        base: { type: 'filter', hook: 'prerouting', priority: BEHIND_MANGLE },
        rules: prerouting(plan),
      },
      { name: 'syn', rules: synChain(plan) },
      ...(tcp ? [{ name: 'remember', rules: remember(plan) }] : []),
      { name: 'divert', rules: divert },
      { name: 'deliver', rules: [rule(setMark(plan.fwmark.value, plan.fwmark.mask), accept)] },
      ...(intercepts ? [{ name: 'skip', rules: skip(plan) }] : []),
      ...(ownHost
        ? ([
            {
              name: 'own_host',
              base: { type: 'filter', hook: 'prerouting', priority: BEFORE_MANGLE },
              rules: fromOwnHost(plan),
            },
            {
              name: 'output',
              base: { type: 'route', hook: 'output', priority: BEHIND_MANGLE },
              rules: output(plan, ownHost),
            },
          ] as const)
        : []),
      ...(ownHost && tcp ? [{ name: 'output_syn', rules: outputSyn(plan, ownHost) }] : []),
      ...(zone === undefined ? [] : zoneChains(plan, zone)),
    ],
  };
}

const isDynamic = ({ declaration }: SetOfRules) => declaration.flags.includes('dynamic');

/** A chain of type nat sees the first packet of each connection only, so that is what is counted. */
function redirectRuleSet(plan: PlanFacts): RuleSet {
  // To conntrack, which may begin with this chain, the next packet of a connection that was open before is a first one.
  const redirected = [syn, ...arriving(plan, 'tcp'), counter, redirect(plan.port)];
  return {
    sets: namedSets(plan).filter((set) => !isDynamic(set)),
    chains: [
      {
        name: 'prerouting',
        base: { type: 'nat', hook: 'prerouting', priority: DSTNAT },
        rules: [...otherFamily(plan), skipChain, { statements: redirected, comment: counted.intercepted }],
      },
      { name: 'skip', rules: skip(plan) },
    ],
  };
}

// ---- words that no plan changes, made once ------------------------------------------------------------------------------

const inFlows = perFamily((family) => flowIn(family, setFor('flows', family)));
const answersFlows = perFamily((family) => flowIn(family, setFor('flows', family), 'reverse'));
const rememberInFlows = perFamily((family) => rememberFlow(family, setFor('flows', family)));
const inOwn = perFamily((family) => flowIn(family, setFor('own', family)));
const rememberInOwn = perFamily((family) => rememberFlow(family, setFor('own', family)));
const addressIs = (which: 'daddr' | 'saddr', relation: 'in' | 'not in', set: string) =>
  perFamily((family) => address(family, which, relation, setFor(set, family)));
const excludedTo = addressIs('daddr', 'in', 'exclude_to');
const excludedFrom = addressIs('saddr', 'in', 'exclude_from');
const notTo = addressIs('daddr', 'not in', 'to');
const notFrom = addressIs('saddr', 'not in', 'from');
const toPorts = { tcp: dport('tcp', 'tcp_ports'), udp: dport('udp', 'udp_ports') };
const byInterface = iifnameIn('interfaces');
const ofTcp = l4proto('tcp');
const tcpOrUdp = l4protoIn('tcp', 'udp');
/** A full socket on one address that is not this host's. */
const listener = [socketWildcard(0), socketTransparent] as const;
// For `socket` these are "TCP or ICMP" and "UDP or ICMP": it finds sockets of TCP, of UDP and of ICMP errors about them, no others.
const notUdp = l4protoIsNot('udp');
const notTcp = l4protoIsNot('tcp');

// ---- rules that no plan changes, made once ------------------------------------------------------------------------------

const rule = (...statements: Statement[]): RuleOfStatements => ({ statements });
const fixed = (...statements: Statement[]): RuleOfStatements => ({ statements, isFixed: true });

const skipChain = fixed(jump('skip'));
const divertChain = fixed(jump('divert'));
const synToItsChain = fixed(syn, goTo('syn'));
/** Whatever is for this host to have ends there: with our mark, which the policy rules read. */
const toDeliver = goTo('deliver');
const tcpOrIcmpToDivert = fixed(notUdp, jump('divert'));
const wildcardBack = fixed(socketWildcard(1), returnToCaller);
const notUdpBack = fixed(notUdp, returnToCaller);
const flowsRemembered = perFamily((family) => fixed(rememberInFlows[family]));
const allToDeliver = fixed(toDeliver);
const listenersDelivered = fixed(...listener, toDeliver);
const leave = (match: typeof excludedTo) => perFamily((family) => fixed(match[family], accept));
const leftAlone = {
  excludedTo: leave(excludedTo),
  excludedFrom: leave(excludedFrom),
  notTo: leave(notTo),
  notFrom: leave(notFrom),
};

// ---- chains -------------------------------------------------------------------------------------------------------------

const both = <T>({ families }: PlanFacts, make: (family: Family) => T): T[] => families.map(make);
const toProxy = ({ port, address, families }: PlanFacts, family?: Family) =>
  tproxy(port, address === undefined ? family : families[0], address);

// tproxy ends its rule when nobody listens, so that the packet goes its own way (`open`) or to this rule behind it.
const droppedIfClosed = ({ onDown }: PlanFacts, match: Statement[]): RuleOfStatements[] =>
  onDown === 'closed' ? [{ statements: [...match, counter, drop], comment: counted.dropped }] : [];

const otherFamily = ({ families }: PlanFacts): RuleOfStatements[] =>
  families.length === 1 ? [rule(nfprotoIsNot(families[0] as Family), returnToCaller)] : [];

/** What came in by an interface that is intercepted, to an intercepted port. */
function arriving({ interfaces }: PlanFacts, protocol: 'tcp' | 'udp'): Statement[] {
  return [notFromLoopback, ...(interfaces ? [byInterface] : []), toPorts[protocol]];
}

function prerouting(plan: PlanFacts): RuleOfStatements[] {
  const { tcp, udp, fwmark, socketMark: ours } = plan;
  const ofFlow = (family: Family) => [ofTcp, inFlows[family]];
  const arrived = arriving(plan, 'udp');
  return [
    ...otherFamily(plan),
    // A SYN takes a way of its own: it may open a new connection on the tuple of one in TIME_WAIT, which `divert` would
    // hand to the old socket.
    synToItsChain,
    // Before everything else, also for ICMP: without "fragmentation needed" a connection from a foreign address cannot
    // learn its path's MTU. So connections already open are never touched either: only what has a transparent socket is.
    tcpOrIcmpToDivert,
    // Of UDP only the answers (and ICMP errors) to what the proxy itself has sent: a divert of all transparent sockets
    // would let one that answers from a foreign address take the datagrams of every client of that address.
    ...(udp || !tcp ? [rule(notTcp, socketMark(ours, fwmark.mask), toDeliver)] : []),
    // The answer to a SYN cookie has no socket, not even half of one, and is no SYN: we know it by the SYN we saw.
    ...(tcp
      ? both(plan, (family) => ({
          statements: [...ofFlow(family), toProxy(plan, family), counter, toDeliver],
          comment: counted.remembered,
        }))
      : []),
    ...(tcp ? both(plan, (family) => droppedIfClosed(plan, ofFlow(family))).flat() : []),
    ...(udp
      ? [
          notUdpBack,
          skipChain,
          { statements: [...arrived, toProxy(plan), counter, toDeliver], comment: DATAGRAM },
          ...droppedIfClosed(plan, arrived),
        ]
      : []),
  ];
}

function synChain(plan: PlanFacts): RuleOfStatements[] {
  const { tcp } = plan;
  const arrived = arriving(plan, 'tcp');
  return [
    // Listeners on foreign addresses come first. Only full sockets match here: a half-open or TIME_WAIT one ends the rule
    // at `socket wildcard`, and tproxy, which knows how to treat it, gets the packet.
    listenersDelivered,
    ...(tcp
      ? [
          skipChain,
          {
            statements: [...arrived, toProxy(plan), counter, goTo('remember')],
            comment: counted.intercepted,
          },
          ...droppedIfClosed(plan, arrived),
        ]
      : []),
    // Not intercepted, so a half-open or TIME_WAIT socket is that of a listener on a foreign address.
    divertChain,
  ];
}

// A chain of its own behind `goto`: a full set ends the rule that updates it, and the drop of `closed` must not be reached.
function remember(plan: PlanFacts): RuleOfStatements[] {
  return [...both(plan, (family) => flowsRemembered[family]), allToDeliver];
}

const divert: readonly RuleOfStatements[] = [
  // Written as a `return` for wildcard listeners, not as a match on `wildcard 0`: that would never match a socket in
  // TIME_WAIT or SYN_RECV, whose last packets would then go to the real client, to be answered with a reset.
  wildcardBack,
  { statements: [socketTransparent, counter, toDeliver], comment: counted.diverted, isFixed: true },
];

/** Why a new connection is left alone. `accept` ends our chain only; other tables still see the packet. */
function skip(plan: PlanFacts): RuleOfStatements[] {
  const each = (rules: typeof leftAlone.notTo) => both(plan, (family) => rules[family]);
  return [
    rule(toThisHost, accept),
    ...each(leftAlone.excludedTo),
    ...each(leftAlone.excludedFrom),
    ...(plan.to ? each(leftAlone.notTo) : []),
    ...(plan.from ? each(leftAlone.notFrom) : []),
  ];
}

// ---- chains of what this host itself sends ----------------------------------------------------------------------------

/** The third of the three marks: neither "deliver here" nor that of the proxy's own sockets. */
export const ownMark = ({ fwmark }: Pick<Plan, 'fwmark'>) => (fwmark.mask & ~fwmark.value) >>> 0;

/**
 * A chain of type `route`: a packet whose mark changes is routed anew, by our policy rule to the loopback interface, where
 * it arrives as if from outside.
 */
function output(plan: PlanFacts, ownHost: OwnHost): RuleOfStatements[] {
  const { tcp, udp, fwmark } = plan;
  const round = [setMark(ownMark(plan), fwmark.mask), counter, accept];
  return [
    ...otherFamily(plan),
    // What the proxy itself sends, first of all: or it would talk to itself for ever. Its socket has the mark, whatever
    // became of the packet's.
    rule(markIsNot(0, fwmark.mask), returnToCaller),
    rule(socketMarkIsNot(0, fwmark.mask), returnToCaller),
    ...(tcp
      ? [
          rule(syn, goTo('output_syn')),
          // Only connections whose SYN we took. A port alone would not tell those that were open before, nor the answers of
          // this host's own services to a client on such a port.
          ...both(plan, (family) => ({
            statements: [ofTcp, inOwn[family], rememberInOwn[family], ...round],
            comment: ROUND,
          })),
        ]
      : []),
    ...(udp
      ? [
          notUdpBack,
          skipChain,
          // UDP has no SYN. A service of this host answers to ports that clients choose: where all ports are intercepted,
          // only conntrack knows answers from questions.
          ...senders(ownHost).map((sender) => ({
            statements: [...sender, ...(isAllPorts(udp) ? [ctDirectionOriginal] : []), toPorts.udp, ...round],
            comment: ROUND,
          })),
        ]
      : []),
  ];
}

/** What `output` has sent round arrives. It has been routed to this host already, so it keeps its mark. */
function fromOwnHost(plan: PlanFacts): RuleOfStatements[] {
  const { tcp, udp, fwmark } = plan;
  const protocol = tcp && udp ? tcpOrUdp : l4proto(tcp ? 'tcp' : 'udp');
  return [
    rule(notFromLoopback, returnToCaller),
    rule(markIsNot(ownMark(plan), fwmark.mask), returnToCaller),
    // The proxy's answers: they inherit the mark with net.ipv4.tcp_fwmark_accept=1.
    rule(toThisHostAlone, returnToCaller),
    // To a listener on a foreign address, or accepted already: the kernel finds the socket by itself.
    ...(tcp ? [rule(ofTcp, ...listener, accept)] : []),
    { statements: [protocol, toProxy(plan), counter, accept], comment: OWN },
    // Nobody can send it on from here any more. Left alone, it would reach whatever service of this host has that port.
    { statements: [counter, drop], comment: DROPPED_OWN },
  ];
}

function outputSyn(plan: PlanFacts, ownHost: OwnHost): RuleOfStatements[] {
  return [
    skipChain,
    ...senders(ownHost).flatMap((sender) =>
      both(plan, (family) => ({
        statements: [
          ...sender,
          nfproto(family),
          toPorts.tcp,
          // A full set ends the rule here: the connection goes direct, all of it.
          rememberInOwn[family],
          setMark(ownMark(plan), plan.fwmark.mask),
          counter,
          accept,
        ],
        comment: ROUND,
      })),
    ),
  ];
}

// ---- a conntrack zone for the clients' side ------------------------------------------------------------------------------

/**
 * A proxy that connects from its client's address and port makes a second connection of the same addresses and ports. To
 * conntrack that is the first one: the sequence numbers do not fit (`ct state invalid`), and it is never masqueraded. So all
 * packets between the client and us are looked up in another zone; what the proxy sends, which has our mark, stays where it was.
 */
function zoneChains(plan: PlanFacts, zone: number): ChainOfRules[] {
  const { tcp, fwmark, socketMark: ours } = plan;
  const known = (flow: typeof inFlows) =>
    both(plan, (family) => rule(ofTcp, flow[family], setZone(zone), returnToCaller));
  return [
    {
      name: 'zone_prerouting',
      base: { type: 'filter', hook: 'prerouting', priority: RAW },
      rules: [
        // This host's own connections are in no zone, whichever way their packets come by.
        rule(fromLoopback, returnToCaller),
        ...otherFamily(plan),
        rule(syn, goTo('zone_syn')),
        rule(ofTcp, socketMark(ours, fwmark.mask), returnToCaller),
        ...known(inFlows),
        rule(ofTcp, socketWildcard(1), returnToCaller),
        rule(ofTcp, socketTransparent, setZone(zone)),
      ],
    },
    {
      name: 'zone_syn',
      rules: [
        // To a listener on a foreign address. Its answer may be a SYN cookie, which has no socket: the flow is remembered.
        rule(...listener, goTo('zone_listener')),
        rule(socketWildcard(0), returnToCaller),
        ...(tcp ? [skipChain, rule(...arriving(plan, 'tcp'), setZone(zone), returnToCaller)] : []),
        // Half-open or in TIME_WAIT, of such a listener.
        wildcardBack,
        rule(socketTransparent, goTo('zone_listener')),
      ],
    },
    {
      name: 'zone_listener',
      rules: [...both(plan, (family) => flowsRemembered[family]), rule(setZone(zone))],
    },
    {
      name: 'zone_output',
      base: { type: 'filter', hook: 'output', priority: RAW },
      rules: [
        ...otherFamily(plan),
        rule(markIs(ours, fwmark.mask), returnToCaller),
        rule(toThisHostAlone, returnToCaller),
        ...known(answersFlows),
        rule(ofTcp, socketTransparent, setZone(zone)),
      ],
    },
  ];
}

/** Whose packets: of everybody one empty match, else one match for all users and one for each cgroup. */
function senders({ users, cgroups }: OwnHost): Statement[][] {
  if (users.length === 0 && cgroups.length === 0) return [[]];
  return [...(users.length > 0 ? [[skuidIn(users)]] : []), ...cgroups.map((each) => [cgroup(each)])];
}
