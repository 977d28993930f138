/**
 * The words of which the rules of the iptables backend are written. Each is a part of an `iptables` command in both of its
 * forms: the text, and the kernel expressions that iptables' nft variant makes of that text. Those are its own extensions
 * (nft_compat), whose C structures are in linux/netfilter/xt_*.h, and native expressions only where it has them itself: a
 * rule of another kind could be neither listed nor saved by `iptables`. Pure.
 */
import type { NftExpression } from '../netlink/types.js';
import type { Family, Fwmark } from '../types.js';
import { addressBytes, type Range } from './ranges.js';

export interface Word {
  readonly text: string;
  readonly expressions: readonly NftExpression[];
  /** Of `-p`: what the extensions behind it are told. */
  readonly compat?: { readonly compatProtocol: number; readonly compatFlags: number };
}

export interface RuleOfWords {
  readonly matches: readonly Word[];
  /** What is done; without it the rule only counts. */
  readonly target?: Word;
}

const IPPROTO = { tcp: 6, udp: 17 } as const;
/** NFT_RULE_COMPAT_F_INV. */
const INVERTED_PROTOCOL = 2;
const REGISTER = 1;
const header = { ipv4: { saddr: 12, daddr: 16 }, ipv6: { saddr: 8, daddr: 24 } } as const;

const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;
const cmp = (op: 'eq' | 'neq', data: Uint8Array): NftExpression => ({ kind: 'cmp', op, sreg: REGISTER, data });
const masked = (mask: Uint8Array): NftExpression => ({
  kind: 'bitwise',
  sreg: REGISTER,
  dreg: REGISTER,
  length: mask.length,
  mask,
  xor: new Uint8Array(mask.length),
});

/** Numbers of a C structure, in host order: each at its place, with its size in bytes. */
type Field = readonly [offset: number, size: 1 | 2 | 4, value: number];

/** The structure of an extension: as long as its type, rounded up to 8 (XT_ALIGN). */
function structure(length: number, fields: readonly Field[], bytes: readonly [offset: number, Uint8Array][] = []) {
  const view = new DataView(new ArrayBuffer(Math.ceil(length / 8) * 8));
  for (const [offset, size, value] of fields)
    if (size === 1) view.setUint8(offset, value);
    else if (size === 2) view.setUint16(offset, value, littleEndian);
    else view.setUint32(offset, value >>> 0, littleEndian);
  const info = new Uint8Array(view.buffer);
  for (const [offset, data] of bytes) info.set(data, offset);
  return info;
}

const match = (text: string, name: string, revision: number, info: Uint8Array): Word => ({
  text,
  expressions: [{ kind: 'match', name, revision, info }],
});
const target = (text: string, name: string, revision: number, info: Uint8Array): Word => ({
  text: `-j ${name}${text}`,
  expressions: [{ kind: 'target', name, revision, info }],
});
const hex = (value: number) => `0x${value.toString(16)}`;
const show = ({ value, mask }: Fwmark) => `${hex(value)}/${hex(mask)}`;
const word = (value: number) => structure(4, [[0, 4, value]]).subarray(0, 4);

/** The expressions of a rule, as iptables orders them: what it matches, its counter, what it does. */
export function expressionsOf({ matches, target }: RuleOfWords): NftExpression[] {
  return [
    ...matches.flatMap(({ expressions }) => expressions),
    { kind: 'counter', packets: 0n, bytes: 0n },
    ...(target?.expressions ?? []),
  ];
}

// ---- matches ------------------------------------------------------------------------------------------------------------

export const ingress = (name: string): Word => ({
  text: `-i ${name}`,
  expressions: [{ kind: 'meta', key: 'iifname', dreg: REGISTER }, cmp('eq', Buffer.from(`${name}\0`))],
});

export const protocol = (name: 'tcp' | 'udp', inverted: 'not' | '' = ''): Word => ({
  text: `${inverted && '! '}-p ${name}`,
  expressions: [
    { kind: 'meta', key: 'l4proto', dreg: REGISTER },
    cmp(inverted ? 'neq' : 'eq', Uint8Array.of(IPPROTO[name])),
  ],
  compat: { compatProtocol: IPPROTO[name], compatFlags: inverted ? INVERTED_PROTOCOL : 0 },
});

/** `prefix` as `toPrefixes` writes it. A whole family matches always, and whole bytes are compared without a mask. */
export function address(family: Family, which: 'saddr' | 'daddr', prefix: string): Word {
  const [text = '', length] = prefix.split('/');
  const bytes = addressBytes(text);
  const bits = length === undefined ? bytes.length * 8 : Number(length);
  if (bits === 0) return { text: '', expressions: [] };
  const payload = (size: number): NftExpression => ({
    kind: 'payload',
    base: 'network',
    offset: header[family][which],
    length: size,
    dreg: REGISTER,
  });
  const mask = bytes.map((_, index) => 0xff00 >> Math.min(Math.max(bits - index * 8, 0), 8));
  return {
    text: `${which === 'saddr' ? '-s' : '-d'} ${text}/${bits}`,
    expressions:
      bits % 8 === 0
        ? [payload(bits / 8), cmp('eq', bytes.subarray(0, bits / 8))]
        : [payload(bytes.length), masked(mask), cmp('eq', bytes)],
  };
}

/** A segment that asks for a new connection, or every other one. Behind `-p tcp`. */
export const syn = (inverted: 'not' | '' = ''): Word => ({
  text: `-m tcp ${inverted && '! '}--tcp-flags FIN,SYN,RST,ACK SYN`,
  expressions: [
    { kind: 'payload', base: 'transport', offset: 13, length: 1, dreg: REGISTER },
    masked(Uint8Array.of(0x17)),
    cmp(inverted ? 'neq' : 'eq', Uint8Array.of(0x02)),
  ],
});

/** A rule takes 15 ports; a range counts twice (XT_MULTI_PORTS). */
export const PORTS = 15;

/** As many words as it takes. Behind `-p`. */
export function destinationPorts(ranges: readonly Range[]): Word[] {
  const chunks: number[][][] = [];
  for (const { start, end } of ranges) {
    const ports = [...new Set([Number(start), Number(end)])];
    const last = chunks.at(-1);
    if (last && last.flat().length + ports.length <= PORTS) last.push(ports);
    else chunks.push([ports]);
  }
  return chunks.map((chunk) => {
    const ports = chunk.flat();
    const isStart = chunk.flatMap((each) => each.map((_, index) => index + 1 < each.length));
    // struct xt_multiport_v1 { u8 flags, count; u16 ports[15]; u8 pflags[15], invert; }
    const info = structure(48, [
      [0, 1, 1], // XT_MULTIPORT_DESTINATION
      [1, 1, ports.length],
      ...ports.map((port, index): Field => [2 + index * 2, 2, port]),
      ...isStart.map((each, index): Field => [32 + index, 1, each ? 1 : 0]),
    ]);
    return match(`-m multiport --dports ${chunk.map((each) => each.join(':')).join(',')}`, 'multiport', 1, info);
  });
}

export const markIs = (mark: Fwmark, inverted: 'not' | '' = ''): Word => ({
  text: `-m mark ${inverted && '! '}--mark ${show(mark)}`,
  expressions: [
    { kind: 'meta', key: 'mark', dreg: REGISTER },
    masked(word(mark.mask)),
    cmp(inverted ? 'neq' : 'eq', word(mark.value)),
  ],
});

/** The connection's mark. */
export const connmark = (mark: Fwmark): Word =>
  match(
    `-m connmark --mark ${show(mark)}`,
    'connmark',
    1, // struct xt_connmark_mtinfo1 { u32 mark, mask; u8 invert; }
    structure(12, [
      [0, 4, mark.value],
      [4, 4, mark.mask],
    ]),
  );

/** The packet goes the way of its connection's first one, or the other. */
export const ctDirection = (direction: 'ORIGINAL' | 'REPLY'): Word =>
  match(
    `-m conntrack --ctdir ${direction}`,
    'conntrack',
    3, // struct xt_conntrack_mtinfo3 { ...; u16 match_flags, invert_flags at 146; ... } with XT_CONNTRACK_DIRECTION
    structure(164, [
      [146, 2, 0x1000],
      [148, 2, direction === 'REPLY' ? 0x1000 : 0],
    ]),
  );

const RTN = { LOCAL: 2, BROADCAST: 3, MULTICAST: 5 } as const;
/** The destination's kind: one of these. For IPv6 name one only, for there all of them would have to hold. */
export const destinationType = (...types: (keyof typeof RTN)[]): Word =>
  match(
    `-m addrtype --dst-type ${types.join(',')}`,
    'addrtype',
    1, // struct xt_addrtype_info_v1 { u16 source, dest; u32 flags; }
    structure(8, [[2, 2, types.reduce((bits, type) => bits | (1 << RTN[type]), 0)]]),
  );

/**
 * The packet belongs to a socket with IP_TRANSPARENT that is bound to one address, half-open and TIME_WAIT ones included.
 * `restoreMark`: of a full socket the packet takes the mark, all of it.
 */
export const socketTransparent = ({ restoreMark = false } = {}): Word =>
  match(
    `-m socket --transparent${restoreMark ? ' --restore-skmark' : ''}`,
    'socket',
    3, // struct xt_socket_mtinfo3 { u8 flags; }: XT_SOCKET_TRANSPARENT, XT_SOCKET_RESTORESKMARK
    structure(1, [[0, 1, restoreMark ? 5 : 1]]),
  );

/** The user whose socket sends. An id that is not known yet stands as 0: such a plan is text only. */
export const owner = ({ name, id = 0 }: { readonly name: string; readonly id?: number }): Word =>
  match(
    `-m owner --uid-owner ${name.replaceAll('"', '')}`,
    'owner',
    1, // struct xt_owner_match_info { u32 uid_min, uid_max, gid_min, gid_max; u8 match, invert; }: XT_OWNER_UID
    structure(18, [
      [0, 4, id],
      [4, 4, id],
      [16, 1, 1],
    ]),
  );

/** The cgroup v2 whose process has opened the socket that sends, or one below it. */
export const cgroup = (path: string): Word =>
  match(
    `-m cgroup --path ${path}`,
    'cgroup',
    2, // struct xt_cgroup_info_v2 { u8 has_path, ...; char path[512]; void *priv; }
    structure(528, [[0, 1, 1]], [[4, Buffer.from(path)]]),
  );
/** Of `path`. */
export const CGROUP_PATH_BYTES = 511;

/** Shown by `iptables -S`; counters are found by it. */
export const comment = (text: string): Word =>
  match(`-m comment --comment "${text}"`, 'comment', 0, structure(256, [], [[0, Buffer.from(text)]]));

// ---- targets ------------------------------------------------------------------------------------------------------------

const verdict = (text: string, code: 'accept' | 'return' | 'jump' | 'goto', chain?: string): Word => ({
  text,
  expressions: [{ kind: 'verdict', verdict: code, ...(chain !== undefined && { chain }) }],
});
export const accept = verdict('-j ACCEPT', 'accept');
export const returnToCaller = verdict('-j RETURN', 'return');
export const jump = (chain: string): Word => verdict(`-j ${chain}`, 'jump', chain);
export const goTo = (chain: string): Word => verdict(`-g ${chain}`, 'goto', chain);

/** Sets the bits of the mask to the value and leaves every other bit of the packet's mark alone. */
export const setMark = (mark: Fwmark): Word =>
  target(
    ` --set-xmark ${show(mark)}`,
    'MARK',
    2, // struct xt_mark_tginfo2 { u32 mark, mask; }
    structure(8, [
      [0, 4, mark.value],
      [4, 4, mark.mask],
    ]),
  );

/** The same with the mark of the packet's connection. */
export const setConnmark = (mark: Fwmark): Word =>
  target(
    ` --set-xmark ${show(mark)}`,
    'CONNMARK',
    2, // struct xt_connmark_tginfo2 { u32 ctmark, ctmask, nfmask; u8 shift_dir, shift_bits, mode; }
    structure(15, [
      [0, 4, mark.value],
      [4, 4, mark.mask],
      [8, 4, 0xffffffff],
    ]),
  );

/**
 * Assigns the packet to the transparent socket or listener that is to have it, and marks it; where there is none the packet
 * is dropped. Behind `-p`.
 */
export function tproxy(family: Family, port: number, mark: Fwmark, onAddress?: string): Word {
  const address = onAddress ?? (family === 'ipv4' ? '0.0.0.0' : '::');
  return target(
    ` --on-port ${port} --on-ip ${address} --tproxy-mark ${show(mark)}`,
    'TPROXY',
    1, // struct xt_tproxy_target_info_v1 { u32 mark_mask, mark_value; nf_inet_addr laddr; be16 lport; }
    structure(
      28,
      [
        [0, 4, mark.mask],
        [4, 4, mark.value],
      ],
      [
        [8, addressBytes(address)],
        [24, Uint8Array.of(port >> 8, port & 0xff)],
      ],
    ),
  );
}
