/**
 * The rule set of the iptables backend: Plan -> chains of our own in iptables' table `mangle`, for each family, and the
 * rules that lead into them. What ruleset.ts does with sets and sockets alone is done here with what iptables has: the
 * connection's mark (so conntrack) remembers what was intercepted. Pure.
 */
import type { Family, Fwmark } from '../types.js';
import {
  accept,
  address,
  cgroup,
  comment,
  connmark,
  ctDirection,
  destinationPorts,
  destinationType,
  goTo,
  ingress,
  jump,
  markIs,
  owner,
  protocol,
  type RuleOfWords,
  returnToCaller,
  setConnmark,
  setMark,
  socketTransparent,
  syn,
  tproxy,
  type Word,
} from './iptables-words.js';
import type { OwnHost, PlanFacts } from './plan.js';
import { isAllPorts, type Range, toPrefixes } from './ranges.js';
import { counted, DATAGRAM, OWN, ownMark, ROUND } from './ruleset.js';

export interface ChainOfWords {
  readonly name: string;
  /** The built-in chain that leads here, from its end or its beginning. */
  readonly from?: { readonly chain: 'PREROUTING' | 'OUTPUT'; readonly at: 'end' | 'beginning' };
  /** Its rules follow the live sets. */
  readonly live?: boolean;
  readonly rules: readonly RuleOfWords[];
}

/** The chains of one family, what is jumped to behind what jumps. */
export function iptablesChains(plan: PlanFacts, family: Family): ChainOfWords[] {
  const { tcp, udp, ownHost } = plan;
  const intercepts = tcp !== undefined || udp !== undefined;
  // Answers to datagrams of the proxy are known by the mark that their questions leave at their connection.
  const answers = udp !== undefined || !tcp;
  return [
    {
      name: chainName(plan),
      // Behind an administrator's: who restores marks from conntrack must not have the last word.
      from: { chain: 'PREROUTING', at: 'end' },
      rules: prerouting(plan, family, answers),
    },
    { name: chainName(plan, 'syn'), rules: synChain(plan) },
    { name: chainName(plan, 'div'), rules: divert(plan) },
    ...(ownHost ? [{ name: chainName(plan, 'lo'), rules: fromOwnHost(plan, family) }] : []),
    ...(intercepts ? arriving(plan, family) : []),
    ...(ownHost || answers
      ? [
          {
            name: chainName(plan, 'out'),
            // In front: the mark is still that of the socket.
            from: { chain: 'OUTPUT', at: 'beginning' } as const,
            rules: output(plan, family, answers),
          },
        ]
      : []),
    ...(ownHost ? leaving(plan, family, ownHost) : []),
  ];
}

/** `/` may not be in a name of ours, but in those of chains, for `nft` too. */
export const chainName = ({ nftTable }: Pick<PlanFacts, 'nftTable'>, part?: string) =>
  part === undefined ? nftTable : `${nftTable}/${part}`;
/** Of a chain's name iptables allows 28 bytes. */
export const LONGEST_NAME = 28 - 'linux-tproxy-'.length - '/o-from'.length;

// ---- chains -------------------------------------------------------------------------------------------------------------

const rule = (...words: [...Word[], Word]): RuleOfWords => ({
  matches: words.slice(0, -1),
  target: words.at(-1) as Word,
});
const noMark = ({ fwmark: { mask } }: PlanFacts): Fwmark => ({ value: 0, mask });
const own = (plan: PlanFacts): Fwmark => ({ value: ownMark(plan), mask: plan.fwmark.mask });
const ofProxy = ({ socketMark, fwmark: { mask } }: PlanFacts): Fwmark => ({ value: socketMark, mask });
const toProxy = ({ port, address, fwmark }: PlanFacts, family: Family, mark: Fwmark = fwmark) =>
  tproxy(family, port, mark, address);

function prerouting(plan: PlanFacts, family: Family, answers: boolean): RuleOfWords[] {
  const { tcp, udp, ownHost, fwmark } = plan;
  const toDivert = jump(chainName(plan, 'div'));
  return [
    ...(ownHost ? [rule(ingress('lo'), connmark(own(plan)), jump(chainName(plan, 'lo')))] : []),
    // A SYN takes a way of its own: it may open a new connection on the tuple of one in TIME_WAIT.
    rule(protocol('tcp'), syn(), goTo(chainName(plan, 'syn'))),
    // Before everything else, for ICMP too: without "fragmentation needed" a connection from a foreign address cannot learn
    // its path's MTU. Not UDP: a socket that answers from a foreign address would take every client's datagrams.
    rule(protocol('udp', 'not'), socketTransparent(), toDivert),
    // The answers, and ICMP errors, to what the proxy itself has sent.
    ...(answers ? [rule(connmark(ofProxy(plan)), ctDirection('REPLY'), toDivert)] : []),
    // The answer to a SYN cookie has no socket and is no SYN: we know its connection by the SYN we saw.
    ...(tcp ? [rule(protocol('tcp'), connmark(fwmark), comment(counted.remembered), toProxy(plan, family))] : []),
    ...(udp ? [rule(protocol('udp'), goTo(chainName(plan, 'new')))] : []),
  ];
}

/**
 * Listeners on foreign addresses come first. The match on sockets takes half-open and TIME_WAIT ones too, which are TPROXY's
 * to treat; but it is full ones only whose mark it restores. So a packet whose mark has changed belongs to one.
 */
function synChain(plan: PlanFacts): RuleOfWords[] {
  return [
    rule(setMark(own(plan))),
    rule(socketTransparent({ restoreMark: true }), markIs(own(plan), 'not'), jump(chainName(plan, 'div'))),
    rule(setMark(noMark(plan))),
    ...(plan.tcp ? [rule(jump(chainName(plan, 'new')))] : []),
    // Not intercepted, so it is the socket of such a listener.
    rule(socketTransparent(), jump(chainName(plan, 'div'))),
  ];
}

const divert = ({ fwmark }: PlanFacts): RuleOfWords[] => [
  rule(comment(counted.diverted), setMark(fwmark)),
  rule(accept),
];

/** New connections and datagrams: what is left alone returns, the rest goes from chain to chain. */
function arriving(plan: PlanFacts, family: Family): ChainOfWords[] {
  const { tcp, udp, interfaces, fwmark } = plan;
  const take = (name: 'tcp' | 'udp') => goTo(chainName(plan, name));
  return [
    ...stages(plan, [
      {
        part: 'new',
        live: true,
        rules: (next) => [
          rule(ingress('lo'), returnToCaller),
          ...toThisHost(family),
          ...skip(plan, family),
          rule(next),
        ],
      },
      ...listed(plan, family, ''),
      ...(interfaces
        ? [{ part: 'in', rules: (next: Word) => interfaces.map((name) => rule(ingress(name), next)) }]
        : []),
      {
        part: 'port',
        live: true,
        rules: () => [...toPorts('tcp', tcp, take('tcp')), ...toPorts('udp', udp, take('udp'))],
      },
    ]),
    ...(tcp
      ? [
          {
            name: chainName(plan, 'tcp'),
            rules: [
              rule(protocol('tcp'), setConnmark(fwmark)),
              rule(protocol('tcp'), comment(counted.intercepted), toProxy(plan, family)),
            ],
          },
        ]
      : []),
    ...(udp
      ? [
          {
            name: chainName(plan, 'udp'),
            rules: [
              // For those who restore marks from conntrack behind us. The proxy's own questions may have the same tuple.
              rule(protocol('udp'), connmark(noMark(plan)), setConnmark(fwmark)),
              rule(protocol('udp'), comment(DATAGRAM), toProxy(plan, family)),
            ],
          },
        ]
      : []),
  ];
}

interface Stage {
  readonly part: string;
  readonly live?: boolean;
  rules(next: Word): RuleOfWords[];
}

/** Chains of which each goes to the next. */
function stages(plan: PlanFacts, list: readonly Stage[]): ChainOfWords[] {
  return list.map(({ part, live, rules }, index) => ({
    name: chainName(plan, part),
    ...(live && { live }),
    rules: rules(goTo(chainName(plan, list[index + 1]?.part))),
  }));
}

/** Why a new connection is left alone. */
function skip({ exclude }: PlanFacts, family: Family): RuleOfWords[] {
  return [
    ...prefixes(family, exclude.to).map((each) => rule(address(family, 'daddr', each), returnToCaller)),
    ...prefixes(family, exclude.from).map((each) => rule(address(family, 'saddr', each), returnToCaller)),
  ];
}

const prefixes = (family: Family, ranges: PlanFacts['exclude']['to']) =>
  ranges[family].flatMap((range) => toPrefixes(family, range));

/** The destination belongs to this host, or to no single host. */
function toThisHost(family: Family): RuleOfWords[] {
  const types =
    family === 'ipv4'
      ? [destinationType('LOCAL', 'BROADCAST', 'MULTICAST')]
      : [destinationType('LOCAL'), destinationType('MULTICAST')];
  return types.map((type) => rule(type, returnToCaller));
}

/** Only what is listed goes on. */
function listed({ to, from }: PlanFacts, family: Family, before: 'o-' | ''): Stage[] {
  const stage = (part: string, which: 'saddr' | 'daddr', ranges: PlanFacts['from']): Stage[] =>
    ranges
      ? [
          {
            part: `${before}${part}`,
            live: true,
            rules: (next) => prefixes(family, ranges).map((each) => rule(address(family, which, each), next)),
          },
        ]
      : [];
  return [...stage('to', 'daddr', to), ...stage('from', 'saddr', from)];
}

function toPorts(
  name: 'tcp' | 'udp',
  ports: readonly Range[] | undefined,
  next: Word,
  ...more: readonly Word[]
): RuleOfWords[] {
  if (!ports) return [];
  if (isAllPorts(ports)) return [rule(protocol(name), ...more, next)];
  return destinationPorts(ports).map((each) => rule(protocol(name), each, next));
}

// ---- chains of what this host itself sends ----------------------------------------------------------------------------

function output(plan: PlanFacts, family: Family, answers: boolean): RuleOfWords[] {
  const { tcp, ownHost } = plan;
  return [
    ...(answers ? [rule(protocol('udp'), markIs(ofProxy(plan)), setConnmark(ofProxy(plan)))] : []),
    ...(ownHost
      ? [
          // What the proxy itself sends, first of all: or it would talk to itself for ever.
          rule(markIs(noMark(plan), 'not'), returnToCaller),
          ...toThisHost(family),
          ...(tcp
            ? [
                // Only connections whose SYN we took. A port alone would not tell those that were open before, nor the
                // answers of this host's own services to a client on such a port.
                rule(protocol('tcp'), syn('not'), connmark(own(plan)), goTo(chainName(plan, 'o-lo'))),
                rule(protocol('tcp'), syn('not'), returnToCaller),
              ]
            : []),
          rule(goTo(chainName(plan, 'o-new'))),
        ]
      : []),
  ];
}

function leaving(plan: PlanFacts, family: Family, ownHost: OwnHost): ChainOfWords[] {
  const { tcp, udp } = plan;
  const senders = [...ownHost.users.map(owner), ...ownHost.cgroups.map(pathOf).map(cgroup)];
  return [
    ...stages(plan, [
      { part: 'o-new', live: true, rules: (next) => [...skip(plan, family), rule(next)] },
      ...listed(plan, family, 'o-'),
      {
        part: 'o-port',
        live: true,
        // UDP has no SYN: where all ports are intercepted, only conntrack knows answers from questions.
        rules: (next) => [...toPorts('tcp', tcp, next), ...toPorts('udp', udp, next, ctDirection('ORIGINAL'))],
      },
      ...(senders.length > 0
        ? [{ part: 'o-who', rules: (next: Word) => senders.map((each) => rule(each, next)) }]
        : []),
      {
        part: 'o-take',
        // Of what conntrack does not follow, the rest would go direct: so all of it does.
        rules: (next) => [rule(setConnmark(own(plan))), rule(connmark(own(plan)), next)],
      },
      // A packet whose mark changes is routed anew, to the loopback interface, where it arrives as if from outside.
      { part: 'o-lo', rules: () => [rule(comment(ROUND), setMark(own(plan))), rule(accept)] },
    ]),
  ];
}

/** From the root of the cgroup hierarchy on, wherever that is mounted. */
export const pathOf = ({ path, level }: OwnHost['cgroups'][number]) => path.split('/').slice(-level).join('/');

/** What `output` has sent round arrives, already routed to this host. */
function fromOwnHost(plan: PlanFacts, family: Family): RuleOfWords[] {
  const { tcp, udp } = plan;
  const take = (name: 'tcp' | 'udp') =>
    rule(protocol(name), comment(OWN), toProxy(plan, family, { value: 0, mask: 0 }));
  return [
    // The proxy's answers, which belong to the same connection.
    rule(destinationType('LOCAL'), returnToCaller),
    ...(tcp
      ? [
          rule(protocol('tcp'), syn('not'), socketTransparent(), accept),
          // To a listener on a foreign address; see synChain.
          rule(protocol('tcp'), setMark(own(plan))),
          rule(protocol('tcp'), socketTransparent({ restoreMark: true }), markIs(own(plan), 'not'), accept),
          take('tcp'),
        ]
      : []),
    ...(udp ? [take('udp')] : []),
  ];
}
