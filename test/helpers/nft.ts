/**
 * nf_tables objects in a compact style, for tests: each function gives what nft makes of the words in its name.
 * Expressions are lists, so that a rule reads as one: `rule('syn', iif('neq'), l4proto('tcp'), dportIn('ports'), accept)`.
 */
import type {
  NftChain,
  NftElement,
  NftElements,
  NftExpression,
  NftObject,
  NftOperation,
  NftRule,
  NftSet,
} from '../../src/netlink/types.js';
import { encodeOpenInterval, encodeSetUserdata, type SetUserdata } from '../../src/netlink/userdata.js';

export type Part = readonly NftExpression[];

// ---- bytes --------------------------------------------------------------------------------------------------------------

export const bytes = (hex: string): Uint8Array => new Uint8Array(Buffer.from(hex, 'hex'));
/** A number as the CPU holds it: marks, interface numbers, uids, fib types. */
export const host32 = (value: number): Uint8Array => new Uint8Array(new Uint32Array([value]).buffer);
export const host16 = (value: number): Uint8Array => new Uint8Array(new Uint16Array([value]).buffer);
/** A number as the network sends it: ports. */
export const be16 = (value: number): Uint8Array => Uint8Array.of(value >> 8, value & 0xff);
export const be32 = (value: number): Uint8Array => bytes(value.toString(16).padStart(8, '0'));
export const ip4 = (address: string): Uint8Array => Uint8Array.from(address.split('.').map(Number));
/** An interface name as it stands in a register: padded to IFNAMSIZ. */
export const ifname = (name: string): Uint8Array => {
  const padded = new Uint8Array(16);
  padded.set(Buffer.from(name));
  return padded;
};

// ---- matches ------------------------------------------------------------------------------------------------------------

const PROTOCOL = { icmp: 1, tcp: 6, udp: 17, icmpv6: 58 } as const;
export type Protocol = keyof typeof PROTOCOL;

export const cmp = (op: 'eq' | 'neq' | 'gte' | 'lte', data: Uint8Array): NftExpression => ({
  kind: 'cmp',
  sreg: 1,
  op,
  data,
});
export const meta = (key: Extract<NftExpression, { kind: 'meta' }>['key']): NftExpression => ({
  kind: 'meta',
  key,
  dreg: 1,
});
export const payload = (base: 'network' | 'transport', offset: number, length: number, dreg = 1): NftExpression => ({
  kind: 'payload',
  base,
  offset,
  length,
  dreg,
});
export const lookup = (set: string, setId: number): NftExpression => ({ kind: 'lookup', set, setId, sreg: 1 });

export const l4proto = (protocol: Protocol, op: 'eq' | 'neq' = 'eq'): Part => [
  meta('l4proto'),
  cmp(op, Uint8Array.of(PROTOCOL[protocol])),
];
export const nfproto = (family: 4 | 6): Part => [meta('nfproto'), cmp('eq', Uint8Array.of(family === 4 ? 2 : 10))];
export const iif = (op: 'eq' | 'neq', index = 1): Part => [meta('iif'), cmp(op, host32(index))];
/** `tcp flags & (fin | syn | rst | ack) == syn`. */
export const syn: Part = [
  ...l4proto('tcp'),
  payload('transport', 13, 1),
  { kind: 'bitwise', sreg: 1, dreg: 1, length: 1, mask: Uint8Array.of(0x17), xor: Uint8Array.of(0) },
  cmp('eq', Uint8Array.of(0x02)),
];
const masked = (mask: number, xor: number): NftExpression => ({
  kind: 'bitwise',
  sreg: 1,
  dreg: 1,
  length: 4,
  mask: host32(mask),
  xor: host32(xor),
});
/** `meta mark & mask == value`. */
export const mark = (mask: number, op: 'eq' | 'neq', value: number): Part => [
  meta('mark'),
  masked(mask, 0),
  cmp(op, host32(value)),
];
export const socketMark = (mask: number, value: number): Part => [
  { kind: 'socket', key: 'mark', dreg: 1 },
  masked(mask, 0),
  cmp('eq', host32(value)),
];
export const socket = (key: 'transparent' | 'wildcard', value: 0 | 1): Part => [
  { kind: 'socket', key, dreg: 1 },
  cmp('eq', Uint8Array.of(value)),
];
export const dport = payload('transport', 2, 2);

// A concatenation puts its fields side by side into registers of 4 bytes. nft numbers a register 1, 2, 3, 4 where it
// begins a block of 16 bytes, and 8 to 23 elsewhere.
/** `ip saddr . tcp sport . ip daddr . tcp dport`, or the same the other way round. */
export const tuple = (family: 4 | 6, reversed = false): Part => {
  const [source, destination, length] = family === 4 ? [12, 16, 4] : [8, 24, 16];
  const [second, third, fourth] = family === 4 ? [9, 10, 11] : [2, 13, 17];
  const [a, b] = reversed ? [destination, source] : [source, destination];
  return [
    payload('network', a, length, 1),
    payload('transport', reversed ? 2 : 0, 2, second),
    payload('network', b, length, third),
    payload('transport', reversed ? 0 : 2, 2, fourth),
  ];
};

// ---- statements -----------------------------------------------------------------------------------------------------------

export const accept: NftExpression = { kind: 'verdict', verdict: 'accept' };
export const drop: NftExpression = { kind: 'verdict', verdict: 'drop' };
export const back: NftExpression = { kind: 'verdict', verdict: 'return' };
export const jump = (chain: string): NftExpression => ({ kind: 'verdict', verdict: 'jump', chain });
export const go = (chain: string): NftExpression => ({ kind: 'verdict', verdict: 'goto', chain });
export const counter: NftExpression = { kind: 'counter', packets: 0n, bytes: 0n };
/** `meta mark set meta mark & ~mask | value`. */
export const setMark = (mask: number, value: number): Part => [
  meta('mark'),
  masked(~mask >>> 0, value),
  { kind: 'meta', key: 'mark', sreg: 1 },
];
export const tproxy = (family: 'ip' | 'ip6' | 'unspec', port: number): Part => [
  { kind: 'immediate', dreg: 1, data: be16(port) },
  { kind: 'tproxy', family, regPort: 1 },
];
export const update = (set: string, setId: number): NftExpression => ({
  kind: 'dynset',
  op: 'update',
  set,
  setId,
  sregKey: 1,
});
export const setZone = (zone: number): Part => [
  { kind: 'immediate', dreg: 1, data: host16(zone) },
  { kind: 'ct', key: 'zone', sreg: 1 },
];

// ---- objects --------------------------------------------------------------------------------------------------------------

/** nft's numbers for the types of keys (enum datatypes in its datatype.h). */
export const TYPE = {
  ipv4_addr: 7,
  ipv6_addr: 8,
  inet_proto: 12,
  inet_service: 13,
  uid: 24,
  fib_addrtype: 38,
  ifname: 41,
};
/** A concatenation's: its fields' in groups of six bits. */
export const concatenated = (...types: number[]): number => types.reduce((all, type) => (all << 6) | type, 0);

/** Makes the operations of a batch that fills one inet table, counting set ids as nft does. */
export class Table {
  readonly operations: NftOperation[] = [];
  private readonly ids = new Map<string, number>();
  private sets = 0;

  constructor(
    readonly name: string,
    options: { userdata?: Uint8Array; flags?: readonly 'owner'[] } = {},
  ) {
    this.add({ kind: 'table', family: 'inet', name, ...options });
  }

  chain(name: string, base?: Pick<NftChain, 'type' | 'hook' | 'priority' | 'policy'>): this {
    return this.add({ kind: 'chain', family: 'inet', table: this.name, name, ...base });
  }

  set(
    name: string,
    set: Pick<
      NftSet,
      'keyType' | 'keyLength' | 'flags' | 'size' | 'timeoutMs' | 'gcIntervalMs' | 'policy' | 'concatenation'
    >,
    userdata: SetUserdata,
    elements: readonly NftElement[] = [],
  ): this {
    const id = ++this.sets;
    this.ids.set(name, id);
    this.add({
      kind: 'set',
      family: 'inet',
      table: this.name,
      name,
      id,
      ...set,
      userdata: encodeSetUserdata(userdata),
    });
    return elements.length === 0 ? this : this.add({ ...this.elements(name, elements), setId: id });
  }

  elements(set: string, elements: readonly NftElement[]): NftElements {
    return { kind: 'elements', family: 'inet', table: this.name, set, elements };
  }

  rule(chain: string, ...parts: readonly (Part | NftExpression)[]): this {
    return this.add(this.ruleObject(chain, ...parts));
  }
  ruleObject(chain: string, ...parts: readonly (Part | NftExpression)[]): NftRule {
    return { kind: 'rule', family: 'inet', table: this.name, chain, expressions: parts.flat() as NftExpression[] };
  }

  /** `@name`, for a set of this table. */
  in(name: string): NftExpression {
    return lookup(name, this.id(name));
  }
  id(name: string): number {
    const id = this.ids.get(name);
    if (id === undefined) throw new Error(`no set ${name}`);
    return id;
  }
  /** `{ a, b, c }`: an anonymous set, made just before the rule that uses it. */
  anonymous(
    set: Pick<NftSet, 'keyType' | 'keyLength'>,
    userdata: SetUserdata,
    keys: readonly Uint8Array[],
  ): NftExpression {
    const name = '__set%d';
    this.set(
      name,
      { ...set, flags: ['anonymous', 'constant'], size: keys.length },
      userdata,
      keys.map((key) => ({ key })),
    );
    return lookup(name, this.sets);
  }
  /** `meta l4proto { ... }`. */
  protocols(...protocols: readonly Protocol[]): Part {
    const set = this.anonymous(
      { keyType: TYPE.inet_proto, keyLength: 1 },
      { keyByteorder: 'host', keyExpression: { kind: 'meta', key: 16 } },
      protocols.map((protocol) => Uint8Array.of(PROTOCOL[protocol])),
    );
    return [meta('l4proto'), set];
  }

  private add(object: NftObject): this {
    this.operations.push({ verb: 'add', object });
    return this;
  }
}

/** A range of an interval set; one that reaches the last value has no end. */
export const range = (first: Uint8Array, afterLast: Uint8Array | undefined): NftElement[] =>
  afterLast
    ? [{ key: first }, { key: afterLast, flags: ['intervalEnd'] }]
    : [{ key: first, userdata: encodeOpenInterval() }];
/** Before the first range of an interval set, unless that begins with zero. */
export const nullElement = (length: number): NftElement => ({ key: new Uint8Array(length), flags: ['intervalEnd'] });
export const portRanges = (...ranges: readonly (readonly [number, number])[]): NftElement[] => [
  ...(ranges[0]?.[0] === 0 ? [] : [nullElement(2)]),
  ...ranges.flatMap(([first, last]) => range(be16(first), last === 65535 ? undefined : be16(last + 1))),
];
