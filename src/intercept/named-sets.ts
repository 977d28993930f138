/** The sets that the rules look in, as words: Plan -> what each is called, its type, and what is in it at first. Pure. */
import type { NftElement } from '../netlink/types.js';
import type { Family } from '../types.js';
import type { PlanFacts, PrefixRanges } from './plan.js';
import { addressRange, formatRange, intervalElements, portRange, type Range, type RangeType } from './ranges.js';
import { type Datatype, datatype } from './statement.js';

export interface SetOfRules {
  readonly name: string;
  readonly type: readonly Datatype[];
  readonly flags: readonly ('interval' | 'dynamic' | 'timeout')[];
  readonly size?: number;
  readonly timeoutSeconds?: number;
  /** As nft prints them. */
  readonly elementTexts: () => readonly string[];
  readonly elements: readonly NftElement[];
}

const familyDigit: Record<Family, '4' | '6'> = { ipv4: '4', ipv6: '6' };
export const setFor = (name: string, family: Family) => `${name}${familyDigit[family]}`;
const FLOW_SIZE = 65536;
/** How long a connection's SYN is remembered: longer than any SYN cookie is valid. */
const FLOW_SECONDS = 60;
/** How long a connection of this host itself is remembered since its last packet. */
const OWN_SECONDS = 600;
/** What the proxy accepts from this host itself must be kept alive more often than it is forgotten. */
export const OWN_KEEPALIVE_MS = (OWN_SECONDS / 2) * 1000;

export function namedSets(plan: PlanFacts): SetOfRules[] {
  const { tcp, udp, from, to, exclude, interfaces, ownHost, zone, families } = plan;
  return [
    ...(tcp ? [portSet('tcp_ports', tcp)] : []),
    ...(udp ? [portSet('udp_ports', udp)] : []),
    ...families.map((family) => prefixSet('exclude_to', family, exclude.to)),
    ...families.map((family) => prefixSet('exclude_from', family, exclude.from)),
    ...(to ? families.map((family) => prefixSet('to', family, to)) : []),
    ...(from ? families.map((family) => prefixSet('from', family, from)) : []),
    ...(interfaces ? [interfaceSet('interfaces', interfaces)] : []),
    ...(tcp || zone !== undefined ? families.map((family) => flowSet('flows', family, FLOW_SECONDS)) : []),
    ...(tcp && ownHost ? families.map((family) => flowSet('own', family, OWN_SECONDS)) : []),
  ];
}

const portSet = (name: string, ports: readonly Range[]) => intervalSet(name, 'inet_service', portRange, ports);
const prefixSet = (name: string, family: Family, prefixes: PrefixRanges) =>
  intervalSet(setFor(name, family), `${family}_addr`, addressRange(family), prefixes[family]);

/** Live sets: elements come and go, some by themselves. */
function intervalSet(name: string, type: Datatype, rangeType: RangeType, ranges: readonly Range[]): SetOfRules {
  return {
    name,
    type: [type],
    flags: ['interval', 'timeout'],
    elementTexts: () => ranges.map((range) => formatRange(rangeType, range)),
    elements: intervalElements(rangeType, ranges),
  };
}

function interfaceSet(name: string, interfaces: readonly string[]): SetOfRules {
  return {
    name,
    type: ['ifname'],
    flags: [],
    elementTexts: () => interfaces.map((each) => `"${each}"`),
    elements: interfaces.map((each) => ({
      key: Buffer.alloc(datatype.ifname.bytes, `${each}\0`, 'latin1').fill(0, each.length),
    })),
  };
}

function flowSet(name: string, family: Family, timeoutSeconds: number): SetOfRules {
  return {
    name: setFor(name, family),
    type: [`${family}_addr`, 'inet_service', `${family}_addr`, 'inet_service'],
    flags: ['dynamic', 'timeout'],
    size: FLOW_SIZE,
    timeoutSeconds,
    elementTexts: () => [],
    elements: [],
  };
}
