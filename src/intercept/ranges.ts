/**
 * Ports and prefixes as sorted, merged, inclusive ranges of numbers: what nft keeps in an interval set with `auto-merge`.
 * Pure. Bad input is a RangeError or TypeError that names the option.
 */
import { isIP } from 'node:net';
import { invalidType, invalidValue, outOfRange } from '../errors.js';
import type { NftElement } from '../netlink/types.js';
import { encodeOpenInterval } from '../netlink/userdata.js';
import type { Family, PortSpec } from '../types.js';

export interface Range {
  readonly start: bigint;
  readonly end: bigint;
}

/** What a range is made of; `bytes` is its width in a set's key. */
export type RangeType = { readonly kind: 'port' | Family; readonly bytes: 2 | 4 | 16 };
export const portRange: RangeType = { kind: 'port', bytes: 2 };
const addressRanges: Readonly<Record<Family, RangeType>> = {
  ipv4: { kind: 'ipv4', bytes: 4 },
  ipv6: { kind: 'ipv6', bytes: 16 },
};
export const addressRange = (family: Family): RangeType => addressRanges[family];

const ALL_PORTS: readonly Range[] = [{ start: 1n, end: 65535n }];

export const isAllPorts = ([first]: readonly Range[]) => first?.start === 1n && first.end === 65535n;

/** `true`, or a list like `[80, '443', '8000-8999']`. */
export function parsePorts(name: string, ports: true | readonly PortSpec[]): readonly Range[] {
  if (ports === true) return ALL_PORTS;
  if (!Array.isArray(ports)) throw invalidType(name, 'true or a list of ports', ports);
  return merge(
    ports.map((spec: PortSpec) => {
      const match = /^(\d+)(?:-(\d+))?$/.exec(String(spec));
      if (!match) throw invalidValue(`${name}: a port`, "a number or a range like '8000-8999'", spec);
      const start = Number(match[1]);
      const end = Number(match[2] ?? start);
      if (start < 1 || end > 65535) throw outOfRange(`${name}: a port`, 'from 1 to 65535', spec);
      if (start > end) throw outOfRange(`${name}: a range`, 'a smaller and then a larger port', spec);
      return { start: BigInt(start), end: BigInt(end) };
    }),
  );
}

/** Prefixes and addresses of both families mixed, sorted out by family. */
export function parsePrefixes(name: string, prefixes: readonly string[]): Readonly<Record<Family, readonly Range[]>> {
  if (!Array.isArray(prefixes)) throw invalidType(name, 'a list of prefixes', prefixes);
  const ranges: Record<Family, Range[]> = { ipv4: [], ipv6: [] };
  for (const prefix of prefixes) {
    const { family, start, end } = parsePrefix(name, prefix);
    ranges[family].push({ start, end });
  }
  return { ipv4: merge(ranges.ipv4), ipv6: merge(ranges.ipv6) };
}

/** `10.0.0.0/8`, `fd00::/8`, or an address alone. Bits set beyond the prefix are an error, since they hide a mistake. */
export function parsePrefix(name: string, prefix: string): Range & { readonly family: Family } {
  if (typeof prefix !== 'string') throw invalidType(`${name}: a prefix`, 'a string', prefix);
  const plain = parsePlainIpv4(prefix);
  if (plain) return plain;
  const parts = prefix.split('/');
  const [address = '', length] = parts;
  const version = isIP(address);
  if (version === 0 || parts.length > 2 || address.includes('%') || (length !== undefined && !/^\d{1,3}$/.test(length)))
    throw invalidValue(`${name}: a prefix`, "an address or a prefix like '10.0.0.0/8' or 'fd00::/8'", prefix);
  const family: Family = version === 4 ? 'ipv4' : 'ipv6';
  const bits = version === 4 ? 32 : 128;
  const prefixLength = length === undefined ? bits : Number(length);
  if (prefixLength > bits) throw outOfRange(`${name}: a prefix length`, `from 0 to ${bits}`, prefix);
  const hostMask = (1n << BigInt(bits - prefixLength)) - 1n;
  const start = addressToNumber(address);
  if (start & hostMask) {
    const network = formatNumber(addressRange(family), start & ~hostMask);
    throw invalidValue(`${name}: a prefix`, `without host bits ('${network}/${prefixLength}')`, prefix);
  }
  return { family, start, end: start | hostMask };
}

const [DOT, SLASH, ZERO, NINE] = [46, 47, 48, 57];

/**
 * What nearly all prefixes are, of which there may be thousands; nothing for all others, and for wrong ones. Character by
 * character, which takes a fifth of what a regular expression does.
 */
function parsePlainIpv4(prefix: string): (Range & { readonly family: Family }) | undefined {
  let address = 0;
  let parts = 0;
  let number = -1; // no digit yet
  for (let index = 0; index < prefix.length; index++) {
    const code = prefix.charCodeAt(index);
    if (code >= ZERO && code <= NINE) {
      if (number === 0) return undefined; // to some, 010 is 8
      number = Math.max(number, 0) * 10 + code - ZERO;
      if (number > 255) return undefined;
    } else {
      if (number < 0 || parts === 4 || code !== (parts === 3 ? SLASH : DOT)) return undefined;
      address = address * 256 + number;
      parts++;
      number = -1;
    }
  }
  if (number < 0 || parts < 3 || (parts === 4 && number > 32)) return undefined;
  if (parts === 3) address = address * 256 + number;
  const size = 2 ** (parts === 3 ? 0 : 32 - number);
  if (address % size !== 0) return undefined;
  return { family: 'ipv4', start: BigInt(address), end: BigInt(address + size - 1) };
}

/** Sorted, with overlapping and adjacent ranges made one. */
export function merge(ranges: readonly Range[]): Range[] {
  const merged: Range[] = [];
  let last: Range | undefined;
  for (const { start, end } of [...ranges].sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0))) {
    if (last && start <= last.end + 1n) {
      if (end <= last.end) continue;
      merged.pop();
      last = { start: last.start, end };
    } else last = { start, end };
    merged.push(last);
  }
  return merged;
}

/** As nft prints it: `80`, `8000-8999`, `10.0.0.0/8`, `10.0.0.1-10.0.0.9`. */
export function formatRange(type: RangeType, { start, end }: Range): string {
  if (start === end) return formatNumber(type, start);
  const size = end - start + 1n;
  const isPrefix = type.kind !== 'port' && (size & (size - 1n)) === 0n && start % size === 0n;
  if (isPrefix) return `${formatNumber(type, start)}/${type.bytes * 8 - (size.toString(2).length - 1)}`;
  return `${formatNumber(type, start)}-${formatNumber(type, end)}`;
}

/**
 * The elements of an interval set: each range is its first key, and the first key behind it flagged as an interval's end.
 * nft begins a set with such an end at zero, so that what lies before the first range is known not to be in the set; a range
 * up to the last number has no end behind it, which nft notes for itself.
 */
export function intervalElements(type: RangeType, ranges: readonly Range[]): NftElement[] {
  const [first] = ranges;
  const elements: NftElement[] = first && first.start > 0n ? [intervalEnd(type, 0n)] : [];
  for (const range of ranges) elements.push(...rangeElements(type, range));
  return elements;
}

/** The elements of one range: its first key, then the end behind it, if there can be one. */
export function rangeElements(type: RangeType, { start, end }: Range): readonly [NftElement, ...NftElement[]] {
  const key = toBytes(start, type.bytes);
  return isOpen(type, end) ? [{ key, userdata: encodeOpenInterval() }] : [{ key }, intervalEnd(type, end + 1n)];
}

/** Up to the last number there is: it has no end behind it. */
export const isOpen = (type: RangeType, end: bigint) => end === LAST[type.bytes];
const LAST: Readonly<Record<RangeType['bytes'], bigint>> = { 2: 0xffffn, 4: 0xffff_ffffn, 16: (1n << 128n) - 1n };

/** The keys of many ranges, none of them open: of each its first key, then that of the end behind it. */
export function intervalKeys({ bytes }: RangeType, ranges: readonly Range[]): Uint8Array {
  const keys = new Uint8Array(ranges.length * 2 * bytes);
  const view = new DataView(keys.buffer);
  let at = 0;
  for (const { start, end } of ranges) {
    if (bytes === 2) {
      view.setUint16(at, Number(start));
      view.setUint16(at + 2, Number(end) + 1);
    } else if (bytes === 4) {
      view.setUint32(at, Number(start));
      view.setUint32(at + 4, Number(end) + 1);
    } else {
      view.setBigUint64(at, start >> 64n);
      view.setBigUint64(at + 8, start); // its lower half
      view.setBigUint64(at + 16, (end + 1n) >> 64n);
      view.setBigUint64(at + 24, end + 1n);
    }
    at += 2 * bytes;
  }
  return keys;
}

const intervalEnd = (type: RangeType, value: bigint): NftElement => ({
  key: toBytes(value, type.bytes),
  flags: ['intervalEnd'],
});

/** The prefixes that a range is made of, the fewest that do: `10.0.0.0/8`, an address alone without its length. */
export function toPrefixes(family: Family, { start, end }: Range): string[] {
  const type = addressRange(family);
  const prefixes: string[] = [];
  for (let from = start; from <= end; ) {
    let size = 1n;
    while ((from & (size * 2n - 1n)) === 0n && from + size * 2n - 1n <= end) size *= 2n;
    prefixes.push(formatRange(type, { start: from, end: from + size - 1n }));
    from += size;
  }
  return prefixes;
}

/** The other way round: the elements in ascending order, as the kernel lists them. */
export function rangesOfElements(type: RangeType, elements: readonly NftElement[]): Range[] {
  const ranges: Range[] = [];
  let start: bigint | undefined;
  const close = (beyond: bigint) => {
    // Where one range begins at the end of another, the kernel may list the two in either order.
    if (start === undefined || start === beyond) return;
    ranges.push({ start, end: beyond - 1n });
    start = undefined;
  };
  for (const { key, flags } of elements) {
    const value = fromBytes(key);
    close(value);
    if (!flags?.includes('intervalEnd')) start = value;
  }
  close(1n << BigInt(type.bytes * 8));
  return merge(ranges);
}

/** An IPv4 or IPv6 address as the number its bytes make. The text must have passed `isIP`. */
export function addressToNumber(address: string): bigint {
  if (!address.includes(':')) return BigInt(ipv4ToNumber(address));
  const [head = '', tail = ''] = address.split('::');
  const front = groupsOf(head);
  return (groupsToNumber(front) << BigInt(128 - 16 * front.length)) | groupsToNumber(groupsOf(tail));
}

const ipv4ToNumber = (address: string) => address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
const groupsToNumber = (groups: readonly number[]) => groups.reduce((sum, group) => (sum << 16n) | BigInt(group), 0n);

/** Of a part of an IPv6 address. Its last 32 bits may be written as an IPv4 address: ::ffff:10.0.0.1 */
function groupsOf(text: string): number[] {
  const groups: number[] = [];
  for (const group of text === '' ? [] : text.split(':')) {
    const plain = group.includes('.') ? ipv4ToNumber(group) : undefined;
    if (plain === undefined) groups.push(Number.parseInt(group, 16));
    else groups.push(plain >>> 16, plain & 0xffff);
  }
  return groups;
}

export function addressBytes(address: string): Uint8Array {
  return toBytes(addressToNumber(address), address.includes(':') ? 16 : 4);
}

/** Network byte order. */
export function toBytes(value: bigint, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  // Four at a time: numbers of any length are slow.
  for (let end = length, rest = value; end > 0; end -= 4, rest >>= 32n) {
    let word = Number(BigInt.asUintN(32, rest));
    for (let index = end - 1; index >= 0 && index >= end - 4; index--, word >>>= 8) bytes[index] = word;
  }
  return bytes;
}

export const fromBytes = (bytes: Uint8Array): bigint => bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);

function formatNumber({ kind, bytes }: RangeType, value: bigint): string {
  if (kind === 'port') return String(value);
  if (kind === 'ipv4') return [...toBytes(value, bytes)].join('.');
  const groups = Array.from({ length: 8 }, (_, index) => (value >> BigInt(112 - 16 * index)) & 0xffffn);
  // RFC 5952: the longest run of two or more zero groups becomes `::`.
  let [from, length] = [0, 1];
  for (let start = 0; start < 8; start++) {
    let run = 0;
    while (start + run < 8 && groups[start + run] === 0n) run++;
    if (run > length) [from, length] = [start, run];
  }
  const text = (part: bigint[]) => part.map((group) => group.toString(16)).join(':');
  return length < 2 ? text(groups) : `${text(groups.slice(0, from))}::${text(groups.slice(from + length))}`;
}
