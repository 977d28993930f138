/**
 * The words of which our rules are written. Each is one nft statement in both of its forms: the text that `nft` reads, and
 * the kernel expressions that nft makes of that text. A rule is a list of them; nothing here knows what our rules are.
 * Pure.
 */
import type { NftElement, NftExpression, NftMetaKey, NftVerdict } from '../netlink/types.js';
import type { SetUserdata } from '../netlink/userdata.js';
import type { Family } from '../types.js';
import { addressBytes, toBytes } from './ranges.js';

/** What nft puts in front of a match on a header, unless the rule has said it already. */
type Dependency = 'tcp' | 'udp' | Family;

export interface Statement {
  readonly text: string;
  readonly expressions: readonly NftExpression[];
  readonly needs?: readonly Dependency[];
  /** The set without a name that the statement looks in; its lookup names the set `ANONYMOUS_SET`. */
  readonly anonymousSet?: AnonymousSet;
}

export interface AnonymousSet {
  readonly type: Datatype;
  /** What was looked up, as nft notes it. */
  readonly keyExpression: NonNullable<SetUserdata['keyExpression']>;
  readonly elements: readonly NftElement[];
}

export interface RuleOfStatements {
  readonly statements: readonly Statement[];
  /** Shown by `nft list`; counters are found by it. */
  readonly comment?: string;
  /** Made once, for all plans: so are its expressions. */
  readonly isFixed?: boolean;
}

/** nft's name for a set that the kernel shall name. */
export const ANONYMOUS_SET = '__set%d';

/** nft's datatypes: what a set's keys mean, for nft's eyes only. include/datatype.h of nftables. */
export const datatype = {
  ipv4_addr: { number: 7, bytes: 4, byteorder: 'network' },
  ipv6_addr: { number: 8, bytes: 16, byteorder: 'network' },
  inet_proto: { number: 12, bytes: 1, byteorder: 'host' },
  inet_service: { number: 13, bytes: 2, byteorder: 'network' },
  uid: { number: 24, bytes: 4, byteorder: 'host' },
  ifname: { number: 41, bytes: 16, byteorder: 'host' },
  fib_addrtype: { number: 38, bytes: 4, byteorder: 'host' },
} as const;
export type Datatype = keyof typeof datatype;

/** Host byte order: the kernel compares marks and interface indices as numbers. */
function hostOrder(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  for (let index = 0; index < 4; index++) bytes[littleEndian ? index : 3 - index] = value >>> (8 * index);
  return bytes;
}
const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;
const hex = (value: number) => `0x${(value >>> 0).toString(16).padStart(8, '0')}`;

const REGISTER = 1;
const meta = (key: NftMetaKey, dreg = REGISTER): NftExpression => ({ kind: 'meta', key, dreg });
const cmp = (op: 'eq' | 'neq', data: Uint8Array): NftExpression => ({ kind: 'cmp', op, sreg: REGISTER, data });
const bitwise = (mask: Uint8Array, xor: Uint8Array): NftExpression => ({
  kind: 'bitwise',
  sreg: REGISTER,
  dreg: REGISTER,
  length: mask.length,
  mask,
  xor,
});

const NFPROTO: Record<Family, number> = { ipv4: 2, ipv6: 10 };
const IPPROTO = { icmp: 1, tcp: 6, udp: 17, 'ipv6-icmp': 58 } as const;
const RTN = { local: 2, broadcast: 3, multicast: 5 } as const;
const IP_CT_DIR_ORIGINAL = 0;
export const LOOPBACK_INDEX = 1;
// The numbers of linux/netfilter/nf_tables.h, for nft's notes only: NFT_META_L4PROTO, NFT_META_SKUID,
// NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR.
const META_L4PROTO = 16;
const META_SKUID = 10;
const FIB_RESULT_TYPE = 3;
const FIB_DADDR = 2;
const header: Record<Family, { name: 'ip' | 'ip6'; saddr: number; daddr: number; bytes: number }> = {
  ipv4: { name: 'ip', saddr: 12, daddr: 16, bytes: 4 },
  ipv6: { name: 'ip6', saddr: 8, daddr: 24, bytes: 16 },
};

const dependency: Record<Dependency, readonly NftExpression[]> = {
  tcp: [meta('l4proto'), cmp('eq', Uint8Array.of(IPPROTO.tcp))],
  udp: [meta('l4proto'), cmp('eq', Uint8Array.of(IPPROTO.udp))],
  ipv4: [meta('nfproto'), cmp('eq', Uint8Array.of(NFPROTO.ipv4))],
  ipv6: [meta('nfproto'), cmp('eq', Uint8Array.of(NFPROTO.ipv6))],
};

/** The expressions of a whole rule, with each dependency once, before the first statement that needs it. */
export function expressionsOf(statements: readonly Statement[]): NftExpression[] {
  const known: Dependency[] = [];
  const all: NftExpression[] = [];
  for (const { needs = [], expressions } of statements) {
    for (const need of needs) {
      if (known.includes(need)) continue;
      known.push(need);
      all.push(...dependency[need]);
    }
    all.push(...expressions);
  }
  return all;
}

// ---- matches ------------------------------------------------------------------------------------------------------------

/** A segment that asks for a new connection: of the four flags, SYN alone. */
export const syn: Statement = {
  text: 'tcp flags & (fin | syn | rst | ack) == syn',
  needs: ['tcp'],
  expressions: [
    { kind: 'payload', base: 'transport', offset: 13, length: 1, dreg: REGISTER },
    bitwise(Uint8Array.of(0x17), Uint8Array.of(0)),
    cmp('eq', Uint8Array.of(0x02)),
  ],
};

export const l4proto = (protocol: 'tcp' | 'udp'): Statement => ({
  text: `meta l4proto ${protocol}`,
  needs: [protocol],
  expressions: [],
});

export const l4protoIsNot = (protocol: 'tcp' | 'udp'): Statement => ({
  text: `meta l4proto != ${protocol}`,
  expressions: [meta('l4proto'), cmp('neq', Uint8Array.of(IPPROTO[protocol]))],
});

export function l4protoIn(...protocols: (keyof typeof IPPROTO)[]): Statement {
  return {
    text: `meta l4proto { ${protocols.join(', ')} }`,
    expressions: [meta('l4proto'), { kind: 'lookup', set: ANONYMOUS_SET, sreg: REGISTER }],
    anonymousSet: {
      type: 'inet_proto',
      keyExpression: { kind: 'meta', key: META_L4PROTO },
      elements: protocols.map((protocol) => ({ key: Uint8Array.of(IPPROTO[protocol]) })),
    },
  };
}

export const nfproto = (family: Family): Statement => ({
  text: `meta nfproto ${family}`,
  needs: [family],
  expressions: [],
});

export function nfprotoIsNot(family: Family): Statement {
  return {
    text: `meta nfproto != ${family}`,
    expressions: [meta('nfproto'), cmp('neq', Uint8Array.of(NFPROTO[family]))],
  };
}

export const fromLoopback: Statement = {
  text: 'iif lo',
  expressions: [meta('iif'), cmp('eq', hostOrder(LOOPBACK_INDEX))],
};

export const notFromLoopback: Statement = {
  text: 'iif != lo',
  expressions: [meta('iif'), cmp('neq', hostOrder(LOOPBACK_INDEX))],
};

export function iifnameIn(set: string): Statement {
  return { text: `iifname @${set}`, expressions: [meta('iifname'), { kind: 'lookup', set, sreg: REGISTER }] };
}

/** `meta mark & 0x3 == 0x3`, of the packet. */
export const markIs = (value: number, mask: number): Statement => masked(packetMark, 'eq', value, mask);
export const markIsNot = (value: number, mask: number): Statement => masked(packetMark, 'neq', value, mask);
/** `socket mark & 0x3 == 0x2`, of the socket that the packet, or the packet an ICMP error is about, belongs to. */
export const socketMark = (value: number, mask: number): Statement => masked(markOfSocket, 'eq', value, mask);
export const socketMarkIsNot = (value: number, mask: number): Statement => masked(markOfSocket, 'neq', value, mask);

const packetMark = { text: 'meta mark', load: meta('mark') };
const markOfSocket = { text: 'socket mark', load: { kind: 'socket', key: 'mark', dreg: REGISTER } as const };
function masked(
  { text, load }: { text: string; load: NftExpression },
  op: 'eq' | 'neq',
  value: number,
  mask: number,
): Statement {
  return {
    text: `${text} & ${hex(mask)} ${op === 'eq' ? '==' : '!='} ${hex(value)}`,
    expressions: [load, bitwise(hostOrder(mask), hostOrder(0)), cmp(op, hostOrder(value))],
  };
}

/** The user whose socket sends. An id that is not known yet stands as 0: such a plan is text only. */
export function skuidIn(users: readonly { readonly name: string; readonly id?: number }[]): Statement {
  // nft takes a list of one for the one.
  const [only] = users;
  if (users.length === 1 && only)
    return { text: `meta skuid ${only.name}`, expressions: [meta('skuid'), cmp('eq', hostOrder(only.id ?? 0))] };
  return {
    text: `meta skuid { ${users.map(({ name }) => name).join(', ')} }`,
    expressions: [meta('skuid'), { kind: 'lookup', set: ANONYMOUS_SET, sreg: REGISTER }],
    anonymousSet: {
      type: 'uid',
      keyExpression: { kind: 'meta', key: META_SKUID },
      elements: users.map(({ id = 0 }) => ({ key: hostOrder(id) })),
    },
  };
}

/** The cgroup v2 whose process has opened the socket that sends, or one below it. Its id is that of its directory. */
export function cgroup({ path, level, id = 0n }: { path: string; level: number; id?: bigint }): Statement {
  return {
    text: `socket cgroupv2 level ${level} "${path}"`,
    expressions: [
      { kind: 'socket', key: 'cgroupv2', level, dreg: REGISTER },
      cmp('eq', new Uint8Array(BigUint64Array.of(id).buffer)),
    ],
  };
}

/** The packet goes the way of its connection's first one, as conntrack knows it. */
export const ctDirectionOriginal: Statement = {
  text: 'ct direction original',
  expressions: [{ kind: 'ct', key: 'direction', dreg: REGISTER }, cmp('eq', Uint8Array.of(IP_CT_DIR_ORIGINAL))],
};

/** The destination belongs to this host, or to no single host. */
export const toThisHost: Statement = {
  text: 'fib daddr type { local, broadcast, multicast }',
  expressions: [
    { kind: 'fib', result: 'type', flags: ['daddr'], dreg: REGISTER },
    { kind: 'lookup', set: ANONYMOUS_SET, sreg: REGISTER },
  ],
  anonymousSet: {
    type: 'fib_addrtype',
    keyExpression: { kind: 'fib', result: FIB_RESULT_TYPE, flags: FIB_DADDR },
    elements: Object.values(RTN).map((type) => ({ key: hostOrder(type) })),
  },
};

export const toThisHostAlone: Statement = {
  text: 'fib daddr type local',
  expressions: [{ kind: 'fib', result: 'type', flags: ['daddr'], dreg: REGISTER }, cmp('eq', hostOrder(RTN.local))],
};

/** `ip daddr @set`, `ip6 saddr != @set`. */
export function address(family: Family, which: 'saddr' | 'daddr', relation: 'in' | 'not in', set: string): Statement {
  const { name, bytes, ...offset } = header[family];
  const invert = relation === 'not in';
  return {
    text: `${name} ${which} ${invert ? '!= ' : ''}@${set}`,
    needs: [family],
    expressions: [
      { kind: 'payload', base: 'network', offset: offset[which], length: bytes, dreg: REGISTER },
      { kind: 'lookup', set, sreg: REGISTER, ...(invert && { invert }) },
    ],
  };
}

export function dport(protocol: 'tcp' | 'udp', set: string): Statement {
  return {
    text: `${protocol} dport @${set}`,
    needs: [protocol],
    expressions: [
      { kind: 'payload', base: 'transport', offset: 2, length: 2, dreg: REGISTER },
      { kind: 'lookup', set, sreg: REGISTER },
    ],
  };
}

/** `socket wildcard 0`: bound to one address; 1: to any. Not a match at all for sockets that are no full ones (TIME_WAIT, SYN_RECV). */
export const socketWildcard = (value: 0 | 1): Statement => socketIs('wildcard', value);
/** `socket transparent 1`: the packet belongs to a socket with IP_TRANSPARENT. */
export const socketTransparent: Statement = socketIs('transparent', 1);

function socketIs(key: 'wildcard' | 'transparent', value: 0 | 1): Statement {
  return {
    text: `socket ${key} ${value}`,
    expressions: [{ kind: 'socket', key, dreg: REGISTER }, cmp('eq', Uint8Array.of(value))],
  };
}

/** The connection's own tuple is in the set; of an answer to it (`reverse`) with source and destination exchanged. */
export function flowIn(family: Family, set: string, direction: 'forward' | 'reverse' = 'forward'): Statement {
  const flow = flowTuple(family, direction);
  return {
    text: `${flow.text} @${set}`,
    needs: [family],
    expressions: [...flow.expressions, { kind: 'lookup', set, sreg: REGISTER }],
  };
}

/** Puts the connection's tuple into the set, or starts its time anew. */
export function rememberFlow(family: Family, set: string): Statement {
  const flow = flowTuple(family, 'forward');
  return {
    text: `update @${set} { ${flow.text} }`,
    needs: [family, 'tcp'],
    expressions: [...flow.expressions, { kind: 'dynset', set, op: 'update', sregKey: REGISTER }],
  };
}

/** `ip saddr . tcp sport . ip daddr . tcp dport`, each field from the next register of 4 bytes that is free. */
function flowTuple(family: Family, direction: 'forward' | 'reverse'): { text: string; expressions: NftExpression[] } {
  const { name, bytes, ...offset } = header[family];
  const source = { address: 'saddr', port: 'sport', offset: 0 } as const;
  const destination = { address: 'daddr', port: 'dport', offset: 2 } as const;
  const ends = direction === 'forward' ? [source, destination] : [destination, source];
  // Where an address ends at a 16-byte register's border, nft uses that register's short number.
  const registers = family === 'ipv4' ? [1, 9, 10, 11] : [1, 2, 13, 17];
  const fields = ends.flatMap((end) => [
    { base: 'network', offset: offset[end.address], length: bytes } as const,
    { base: 'transport', offset: end.offset, length: 2 } as const,
  ]);
  return {
    text: ends.map((end) => `${name} ${end.address} . tcp ${end.port}`).join(' . '),
    expressions: fields.map((field, index) => ({ kind: 'payload', ...field, dreg: registers[index] as number })),
  };
}

// ---- actions ------------------------------------------------------------------------------------------------------------

/**
 * Assigns the packet to the transparent listener on the port (and address); without a listener the rule ends here and the
 * next one is run. `family` is left out where one rule serves both.
 */
export function tproxy(port: number, family?: Family, onAddress?: string): Statement {
  const where = onAddress === undefined ? '' : family === 'ipv6' ? `[${onAddress}]` : onAddress;
  const name = family === undefined ? '' : `${header[family].name} `;
  const addressed: NftExpression[] =
    onAddress === undefined ? [] : [{ kind: 'immediate', dreg: REGISTER, data: addressBytes(onAddress) }];
  const regPort = REGISTER + addressed.length;
  return {
    text: `tproxy ${name}to ${where}:${port}`,
    expressions: [
      ...addressed,
      { kind: 'immediate', dreg: regPort, data: toBytes(BigInt(port), 2) },
      {
        kind: 'tproxy',
        family: family === undefined ? 'unspec' : header[family].name,
        ...(onAddress !== undefined && { regAddr: REGISTER }),
        regPort,
      },
    ],
  };
}

/** Sets the bits of the mask to the value and leaves every other bit of the packet's mark alone. */
export function setMark(value: number, mask: number): Statement {
  return {
    text: `meta mark set meta mark & ${hex(~mask)} | ${hex(value)}`,
    expressions: [
      meta('mark'),
      bitwise(hostOrder(~mask), hostOrder(value)),
      { kind: 'meta', key: 'mark', sreg: REGISTER },
    ],
  };
}

/** To this host itself, at the port. In a chain of type nat. */
export function redirect(port: number): Statement {
  return {
    text: `redirect to :${port}`,
    expressions: [
      { kind: 'immediate', dreg: REGISTER, data: toBytes(BigInt(port), 2) },
      { kind: 'redir', regProtoMin: REGISTER, flags: ['protoSpecified'] },
    ],
  };
}

/** Conntrack, which has not seen the packet yet, looks for its connection in this zone. */
export function setZone(zone: number): Statement {
  return {
    text: `ct zone set ${zone}`,
    expressions: [
      { kind: 'immediate', dreg: REGISTER, data: new Uint8Array(Uint16Array.of(zone).buffer) },
      { kind: 'ct', key: 'zone', sreg: REGISTER },
    ],
  };
}

export const counter: Statement = {
  text: 'counter',
  expressions: [{ kind: 'counter', packets: 0n, bytes: 0n }],
};

export const accept = verdict('accept');
export const drop = verdict('drop');
export const returnToCaller = verdict('return');
export const jump = (chain: string): Statement => verdict('jump', chain);
export const goTo = (chain: string): Statement => verdict('goto', chain);

function verdict(code: Extract<NftVerdict, string>, chain?: string): Statement {
  return {
    text: chain === undefined ? code : `${code} ${chain}`,
    expressions: [{ kind: 'verdict', verdict: code, ...(chain !== undefined && { chain }) }],
  };
}
