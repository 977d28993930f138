/** The sets that the rules look in, as words: Plan -> what each is called, its type, and what is in it at first. Pure. */
import type { NftElement } from '../netlink/types.js';
import type { Family } from '../types.js';
import type { PlanFacts, PrefixRanges } from './plan.js';
import { addressRange, formatRange, intervalElements, portRange, type Range, type RangeType } from './ranges.js';
import { type Datatype, datatype } from './statement.js';

/** All of a set but what is in it: no plan changes it. */
export interface SetDeclaration {
  readonly name: string;
  readonly type: readonly Datatype[];
  readonly flags: readonly ('interval' | 'dynamic' | 'timeout')[];
  readonly size?: number;
  readonly timeoutSeconds?: number;
}
export interface SetOfRules {
  readonly declaration: SetDeclaration;
  /** As nft prints them. */
  readonly elementTexts: () => readonly string[];
  readonly elements: readonly NftElement[];
}

const familyDigit: Record<Family, '4' | '6'> = { ipv4: '4', ipv6: '6' };
export const setFor = (name: string, family: Family) => `${name}${familyDigit[family]}`;
/** One for each, made once and for all plans. */
export const perFamily = <T>(make: (family: Family) => T): Readonly<Record<Family, T>> => ({
  ipv4: make('ipv4'),
  ipv6: make('ipv6'),
});
const FLOW_SIZE = 65536;
/** How long a connection's SYN is remembered: longer than any SYN cookie is valid. */
const FLOW_SECONDS = 60;
/** How long a connection of this host itself is remembered since its last packet. */
const OWN_SECONDS = 600;
/** What the proxy accepts from this host itself must be kept alive more often than it is forgotten. */
export const OWN_KEEPALIVE_MS = (OWN_SECONDS / 2) * 1000;

/** Live sets: elements come and go, some by themselves. */
const intervals = (name: string, type: Datatype): SetDeclaration => ({
  name,
  type: [type],
  flags: ['interval', 'timeout'],
});
const prefixes = (name: string) => perFamily((family) => intervals(setFor(name, family), `${family}_addr`));
const flows = (name: string, timeoutSeconds: number) =>
  perFamily((family): SetOfRules => {
    const type = [`${family}_addr`, 'inet_service', `${family}_addr`, 'inet_service'] as const;
    const flags = ['dynamic', 'timeout'] as const;
    const declaration = { name: setFor(name, family), type, flags, size: FLOW_SIZE, timeoutSeconds };
    return { declaration, elementTexts: () => [], elements: [] };
  });

const PORTS = { tcp: intervals('tcp_ports', 'inet_service'), udp: intervals('udp_ports', 'inet_service') };
const EXCLUDE_TO = prefixes('exclude_to');
const EXCLUDE_FROM = prefixes('exclude_from');
const TO = prefixes('to');
const FROM = prefixes('from');
const INTERFACES: SetDeclaration = { name: 'interfaces', type: ['ifname'], flags: [] };
const FLOWS = flows('flows', FLOW_SECONDS);
const OWN = flows('own', OWN_SECONDS);

export function namedSets(plan: PlanFacts): SetOfRules[] {
  const { tcp, udp, from, to, exclude, interfaces, ownHost, zone, families } = plan;
  const prefixSets = (declarations: typeof TO, ranges: PrefixRanges) =>
    families.map((family) => intervalSet(declarations[family], addressRange(family), ranges[family]));
  return [
    ...(tcp ? [intervalSet(PORTS.tcp, portRange, tcp)] : []),
    ...(udp ? [intervalSet(PORTS.udp, portRange, udp)] : []),
    ...prefixSets(EXCLUDE_TO, exclude.to),
    ...prefixSets(EXCLUDE_FROM, exclude.from),
    ...(to ? prefixSets(TO, to) : []),
    ...(from ? prefixSets(FROM, from) : []),
    ...(interfaces ? [interfaceSet(interfaces)] : []),
    ...(tcp || zone !== undefined ? families.map((family) => FLOWS[family]) : []),
    ...(tcp && ownHost ? families.map((family) => OWN[family]) : []),
  ];
}

const intervalSet = (declaration: SetDeclaration, type: RangeType, ranges: readonly Range[]): SetOfRules => ({
  declaration,
  elementTexts: () => ranges.map((range) => formatRange(type, range)),
  elements: intervalElements(type, ranges),
});

const interfaceSet = (interfaces: readonly string[]): SetOfRules => ({
  declaration: INTERFACES,
  elementTexts: () => interfaces.map((each) => `"${each}"`),
  elements: interfaces.map((each) => ({
    key: Buffer.alloc(datatype.ifname.bytes, `${each}\0`, 'latin1').fill(0, each.length),
  })),
});
