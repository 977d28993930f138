/** Words of the command line into the objects of linux-tproxy/netlink. */
import { isIPv4, isIPv6 } from 'node:net';
import { encodeOpenInterval } from 'linux-tproxy/netlink';
import { TYPES } from './print.mjs';

/** @typedef {import('linux-tproxy/netlink').NftElement} Element */
/** @typedef {import('linux-tproxy/netlink').NftSet} Set */

const IFNAME = 41;
/** @type {Record<string, bigint>} */
const UNITS = { d: 86_400_000n, h: 3_600_000n, m: 60_000n, s: 1000n, ms: 1n };

/** `1h30m` in milliseconds. @param {string} text */
function durationOf(text) {
  if (!/^(\d+(d|h|ms|m|s))+$/.test(text)) throw new TypeError(`'${text}' is not a duration such as 1h30m`);
  return [...text.matchAll(/(\d+)(ms|[dhms])/g)].reduce(
    (sum, [, count, unit]) => sum + BigInt(count ?? 0) * (UNITS[unit ?? ''] ?? 0n),
    0n,
  );
}

/** @param {Uint8Array} key */
const numberOf = (key) => BigInt(`0x${Buffer.from(key).toString('hex')}`);
/** @param {bigint} number @param {number} length */
const bytesOf = (number, length) => Buffer.from(number.toString(16).padStart(2 * length, '0'), 'hex');

/** @param {string} text @param {number} keyType */
function keyOf(text, keyType) {
  const bytes = Buffer.alloc(TYPES[keyType]?.length ?? 0);
  if (keyType === 13 && /^\d+$/.test(text) && Number(text) < 65536) bytes.writeUInt16BE(Number(text));
  else if (keyType === 7 && isIPv4(text)) bytes.set(text.split('.').map(Number));
  else if (keyType === 8 && isIPv6(text)) {
    const [head = [], tail = []] = text.split('::').map((half) => half.split(':').filter(Boolean));
    const groups = [...head, ...Array(8 - head.length - tail.length).fill('0'), ...tail];
    for (const [at, group] of groups.entries()) bytes.writeUInt16BE(Number.parseInt(group, 16), 2 * at);
  } else if (keyType === IFNAME && text.length < 16) bytes.write(text);
  else throw new TypeError(`'${text}' is not ${TYPES[keyType]?.name ?? 'of a type that is known here'}`);
  return bytes;
}

/** The first key and the last of `10.0.0.0/8`, `1000-2000`, `80`. @param {string} text @param {number} keyType */
function rangeOf(text, keyType) {
  const [from = '', to = from] = text.split('-');
  const [address = '', length] = from.split('/');
  const first = keyOf(address, keyType);
  if (length === undefined) return { first, last: keyOf(to, keyType) };
  const within = (1n << BigInt(8 * first.length - Number(length))) - 1n;
  const number = numberOf(first) & ~within;
  return { first: bytesOf(number, first.length), last: bytesOf(number | within, first.length) };
}

/** What one word stands for in a set: of an interval its first key and, flagged, the first behind it. @param {string} text @param {Set} set @returns {Element[]} */
export function elementsOf(text, { keyType, flags }) {
  if (!flags?.includes('interval')) return [{ key: keyOf(text, keyType) }];
  const { first, last } = rangeOf(text, keyType);
  if (last.every((byte) => byte === 0xff)) return [{ key: first, userdata: encodeOpenInterval() }];
  return [{ key: first }, { key: bytesOf(numberOf(last) + 1n, last.length), flags: ['intervalEnd'] }];
}

/** `10.0.0.0/8 192.0.2.1 timeout 1h`. @param {readonly string[]} words @param {Set} set @returns {Element[]} */
export function elementList(words, set) {
  /** @type {Element[]} */
  const elements = [];
  for (let at = 0; at < words.length; at++) {
    const [first, ...end] = elementsOf(words[at] ?? '', set);
    if (!first) continue;
    if (words[at + 1] === 'timeout') {
      elements.push({ ...first, timeoutMs: durationOf(words[at + 2] ?? '') }, ...end);
      at += 2;
    } else elements.push(first, ...end);
  }
  return elements;
}

/** `name value name value ...` @param {readonly string[]} words @returns {Record<string, string | undefined>} */
const pairs = (words) =>
  Object.fromEntries(Array.from({ length: words.length / 2 }, (_, i) => [words[2 * i], words[2 * i + 1]]));

/**
 * `type filter hook input priority 0 policy drop`: nothing where there are no words.
 * @param {readonly string[]} words
 */
export function baseOf(words) {
  const { type, hook, priority, policy = 'accept' } = pairs(words);
  return (
    type && {
      type,
      hook: /** @type {'input'} */ (hook),
      priority: Number(priority),
      policy: /** @type {'accept'} */ (policy),
    }
  );
}

/** `type ipv4_addr flags interval,timeout timeout 1h`. @param {readonly string[]} words */
export function keysOf(words) {
  const { type = 'ipv4_addr', flags, timeout } = pairs(words);
  const found = Object.entries(TYPES).find(([, each]) => each.name === type);
  if (!found) throw new TypeError(`'${type}' is not a type that is known here`);
  return {
    keyType: Number(found[0]),
    keyLength: found[1].length,
    ...(flags && { flags: /** @type {'interval'[]} */ (flags.split(',')) }),
    ...(timeout && { timeoutMs: durationOf(timeout) }),
  };
}
