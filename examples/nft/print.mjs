/** nf_tables objects in the words of `nft list ruleset`, as far as linux-tproxy/netlink decodes them. */
import { decodeComment, decodeSetUserdata } from 'linux-tproxy/netlink';

/** @typedef {import('linux-tproxy/netlink').NftExpression} Expression */
/**
 * What a register holds: the words that say where it is from, and how a value of it is written.
 * @typedef {{ words: string, write: (bytes: Uint8Array) => string, constant?: Uint8Array }} Value
 */

const PROTOCOLS = /** @type {const} */ ({ 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'ipv6-icmp' });
const NFPROTO = /** @type {const} */ ({ 2: 'ipv4', 10: 'ipv6' });
const CT_STATES = { 1: 'invalid', 2: 'established', 4: 'related', 8: 'new', 64: 'untracked' };
const ADDRESS_TYPES = ['unspec', 'unicast', 'local', 'broadcast', 'anycast', 'multicast', 'blackhole', 'unreachable'];
const PRIORITIES = { '-300': 'raw', '-150': 'mangle', '-100': 'dstnat', 0: 'filter', 50: 'security', 100: 'srcnat' };
const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** @param {Uint8Array} bytes */
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
/** @param {Uint8Array} bytes */
const big = (bytes) => bytes.reduce((number, byte) => number * 256 + byte, 0);
/** @param {Uint8Array} bytes */
const host = (bytes) => big(littleEndian ? bytes.slice().reverse() : bytes);
/** @param {number} number */
const mark = (number) => `0x${number.toString(16).padStart(8, '0')}`;
/** @param {Record<number, string> | string[]} words */
const wordOf = (words) => (/** @type {number} */ number) => words[/** @type {never} */ (number)] ?? String(number);
/** @param {Uint8Array} bytes */
const ipv6 = (bytes) =>
  new URL(
    `http://[${Array.from({ length: 8 }, (_, i) =>
      view(bytes)
        .getUint16(2 * i)
        .toString(16),
    ).join(':')}]`,
  ).hostname.slice(1, -1);
/** @param {Uint8Array} bytes */
const address = (bytes) => (bytes.length === 16 ? ipv6(bytes) : [...bytes].join('.'));
/** An interface name, NUL to its end; without one it is the beginning of a name. @param {Uint8Array} bytes */
const ifname = (bytes) => {
  const end = bytes.indexOf(0);
  return `"${Buffer.from(end < 0 ? bytes : bytes.subarray(0, end))}${end < 0 && bytes.length < 16 ? '*' : ''}"`;
};

/** nft's own type numbers. @type {Record<number, { name: string, length: number, write: (bytes: Uint8Array) => string }>} */
export const TYPES = {
  7: { name: 'ipv4_addr', length: 4, write: address },
  8: { name: 'ipv6_addr', length: 16, write: address },
  12: { name: 'inet_proto', length: 1, write: (bytes) => wordOf(PROTOCOLS)(big(bytes)) },
  13: { name: 'inet_service', length: 2, write: (bytes) => String(big(bytes)) },
  19: { name: 'mark', length: 4, write: (bytes) => mark(host(bytes)) },
  41: { name: 'ifname', length: 16, write: ifname },
};

/** @type {Record<string, (bytes: Uint8Array) => string>} */
const META = {
  mark: (bytes) => mark(host(bytes)),
  nfproto: (bytes) => wordOf(NFPROTO)(big(bytes)),
  l4proto: (bytes) => wordOf(PROTOCOLS)(big(bytes)),
  iifname: ifname,
  oifname: ifname,
};
const UNQUALIFIED = ['iif', 'oif', 'iifname', 'oifname', 'iifgroup', 'oifgroup'];
/** By family and offset; transport ones say nothing of the protocol. @type {Record<string, [string, (bytes: Uint8Array) => string]>} */
const PAYLOAD = {
  'network 12 4': ['ip saddr', address],
  'network 16 4': ['ip daddr', address],
  'network 8 16': ['ip6 saddr', address],
  'network 24 16': ['ip6 daddr', address],
  'transport 0 2': ['sport', (bytes) => String(big(bytes))],
  'transport 2 2': ['dport', (bytes) => String(big(bytes))],
};
const CMP = { eq: '', neq: '!= ', lt: '< ', lte: '<= ', gt: '> ', gte: '>= ' };

/** @param {Uint8Array} bytes */
const hex = (bytes) => `0x${Buffer.from(bytes).toString('hex')}`;
/** Flags by their names. @param {number} bits */
const stateWords = (bits) =>
  Object.entries(CT_STATES)
    .filter(([bit]) => bits & Number(bit))
    .map(([, word]) => word)
    .join(',');
/** `x | bits`, which the kernel has as `(x & ~bits) ^ bits`. @param {Uint8Array} mask @param {Uint8Array} xor */
const setsBits = (mask, xor) => mask.every((byte, at) => (byte & /** @type {number} */ (xor[at])) === 0);
/** @param {Value} value @param {(bytes: Uint8Array) => string} write */
const textOf = (value, write) => (value.constant ? write(value.constant) : value.words);
/** @param {bigint} milliseconds */
function duration(milliseconds) {
  let rest = Number(milliseconds);
  /** @type {[string, number][]} */
  const units = [
    ['d', 86_400_000],
    ['h', 3_600_000],
    ['m', 60_000],
    ['s', 1000],
    ['ms', 1],
  ];
  return units
    .map(([unit, size]) => {
      const count = Math.floor(rest / size);
      rest -= count * size;
      return count ? `${count}${unit}` : '';
    })
    .join('');
}

/** Registers 1 to 4 are four of those from 8 on. @param {number} register */
const slot = (register) => (register < 8 ? 4 + 4 * register : register);

/**
 * @param {readonly Expression[]} expressions
 * @param {{ elements: (set: string) => string, device: (index: number) => string }} look
 */
export function ruleText(expressions, look) {
  /** @type {Map<number, Value>} */
  const registers = new Map();
  /** @type {string[]} */
  const words = [];
  /** The protocol that is asked for, and where: nft leaves it out before what cannot be without. */
  let protocol = { name: '', at: -1 };
  let family = -1;
  const held = (/** @type {number} */ register) => registers.get(slot(register)) ?? { words: '?', write: hex };
  const keep = (/** @type {number | undefined} */ register, /** @type {Value} */ value) => {
    registers.set(slot(register ?? 0), value);
  };
  const implied = () => {
    if (protocol.at >= 0) words[protocol.at] = '';
    protocol.at = -1;
  };
  for (const expression of expressions) {
    switch (expression.kind) {
      case 'meta': {
        const { key, dreg, sreg } = expression;
        const name = UNQUALIFIED.includes(String(key)) ? String(key) : `meta ${key}`;
        const index = key === 'iif' || key === 'oif';
        const write = index
          ? (/** @type {Uint8Array} */ bytes) => `"${look.device(host(bytes))}"`
          : (META[key] ?? ((/** @type {Uint8Array} */ bytes) => String(host(bytes))));
        if (sreg === undefined) keep(dreg, { words: name, write });
        else words.push(`${name} set ${textOf(held(sreg), write)}`);
        break;
      }
      case 'payload': {
        const { base, offset, length, dreg } = expression;
        const [name, write] = PAYLOAD[`${base} ${offset} ${length}`] ?? [
          `@${base[0]}h,${8 * offset},${8 * length}`,
          hex,
        ];
        if (base === 'transport' && protocol.name) implied();
        if (base === 'network' && family >= 0) words[family] = '';
        keep(dreg, { words: base === 'transport' && protocol.name ? `${protocol.name} ${name}` : name, write });
        break;
      }
      case 'ct': {
        const { key, direction, dreg, sreg } = expression;
        const name = ['ct', direction, key].filter(Boolean).join(' ');
        const write = (/** @type {Uint8Array} */ bytes) =>
          key === 'mark'
            ? mark(host(bytes))
            : key === 'direction'
              ? big(bytes)
                ? 'reply'
                : 'original'
              : String(host(bytes));
        if (sreg === undefined) keep(dreg, { words: name, write });
        else words.push(`${name} set ${textOf(held(sreg), write)}`);
        break;
      }
      case 'fib':
        keep(expression.dreg, {
          words: `fib ${expression.flags.filter((flag) => flag !== 'present').join(' . ')} ${expression.result}`,
          write: (bytes) => (expression.result === 'type' ? wordOf(ADDRESS_TYPES)(host(bytes)) : String(host(bytes))),
        });
        break;
      case 'socket':
        keep(expression.dreg, {
          words: `socket ${expression.key}`,
          write: (bytes) => (expression.key === 'mark' ? mark(host(bytes)) : String(host(bytes))),
        });
        break;
      case 'bitwise': {
        const from = held(expression.sreg);
        const { mask, xor } = expression;
        const set = xor.some((byte) => byte !== 0) ? ` ${setsBits(mask, xor) ? '|' : '^'} ${from.write(xor)}` : '';
        const kept = mask.some((byte, at) => (byte ^ /** @type {number} */ (xor[at])) !== 0xff) || !set;
        const bits = Uint8Array.from(mask, (byte, at) => byte | /** @type {number} */ (xor[at]));
        const onlySets = set && bits.every((byte) => byte === 0xff);
        keep(expression.dreg, {
          ...from,
          words: `${from.words}${kept && !onlySets ? ` & ${from.write(mask)}` : ''}${set}`,
        });
        break;
      }
      case 'immediate':
        keep(expression.dreg, { words: '', write: (bytes) => hex(bytes), constant: expression.data });
        break;
      case 'cmp': {
        const { words: what, write } = held(expression.sreg);
        if (what.startsWith('ct state & ')) words.push(`ct state ${stateWords(Number(what.slice(11)))}`);
        else {
          const equal = what.includes(' & ') && expression.op === 'eq' ? '== ' : CMP[expression.op];
          words.push(`${what} ${equal}${write(expression.data)}`);
        }
        if (what === 'meta nfproto' && expression.op === 'eq') family = words.length - 1;
        if (what === 'meta l4proto' && expression.op === 'eq')
          protocol = { name: wordOf(PROTOCOLS)(big(expression.data)), at: words.length - 1 };
        break;
      }
      case 'lookup':
        words.push(
          `${held(expression.sreg).words} ${expression.invert ? '!= ' : ''}${
            expression.set.startsWith('__set') ? look.elements(expression.set) : `@${expression.set}`
          }`,
        );
        break;
      case 'dynset':
        words.push(
          `${expression.op} @${expression.set} { ${held(expression.sregKey).words}${
            expression.timeoutMs ? ` timeout ${duration(expression.timeoutMs)}` : ''
          } }`,
        );
        break;
      case 'counter':
        words.push(`counter packets ${expression.packets} bytes ${expression.bytes}`);
        break;
      case 'objref':
        words.push(`${expression.type} name "${expression.name}"`);
        break;
      case 'tproxy': {
        const { family, regAddr, regPort } = expression;
        const to =
          regAddr === undefined ? '' : textOf(held(regAddr), family === 'ip6' ? (b) => `[${address(b)}]` : address);
        const port = regPort === undefined ? '' : `:${textOf(held(regPort), (bytes) => String(big(bytes)))}`;
        words.push(`tproxy ${family === 'unspec' ? '' : `${family} `}to ${to}${port}`);
        break;
      }
      case 'redir':
        words.push(
          expression.regProtoMin === undefined
            ? 'redirect'
            : `redirect to :${textOf(held(expression.regProtoMin), (bytes) => String(big(bytes)))}`,
        );
        break;
      case 'verdict':
        words.push([expression.verdict, expression.chain].filter(Boolean).join(' '));
        break;
      default:
        words.push(`# ${'name' in expression ? expression.name : expression.kind}`); // no words for it here
    }
  }
  return words.filter(Boolean).join(' ');
}

/** A prefix where the range is one, a range otherwise. @param {Uint8Array} first @param {Uint8Array} last @param {(bytes: Uint8Array) => string} write */
function rangeText(first, last, write) {
  if (first.length < 4 || Buffer.compare(first, last) === 0)
    return Buffer.compare(first, last) === 0 ? write(first) : `${write(first)}-${write(last)}`;
  const bits = (/** @type {Uint8Array} */ bytes) =>
    [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  const [from, to] = [bits(first), bits(last)];
  let length = 0;
  while (from[length] === to[length]) length++;
  const isPrefix = !from.slice(length).includes('1') && !to.slice(length).includes('0');
  return isPrefix ? `${write(first)}/${length}` : `${write(first)}-${write(last)}`;
}

/**
 * The elements of a set. Those of an interval set are where one begins and, flagged, the first behind it.
 * @param {readonly import('linux-tproxy/netlink').NftElement[]} elements
 * @param {number} keyType
 * @param {boolean} interval
 */
export function elementTexts(elements, keyType, interval) {
  const write = TYPES[keyType]?.write ?? hex;
  const times = (/** @type {import('linux-tproxy/netlink').NftElement} */ element) =>
    (element.timeoutMs ? ` timeout ${duration(element.timeoutMs)}` : '') +
    (element.expiresMs ? ` expires ${duration(element.expiresMs)}` : '');
  if (!interval) return elements.map((element) => write(element.key) + times(element));
  return elements.flatMap((element, at) => {
    if (element.flags?.includes('intervalEnd')) return [];
    const next = elements[at + 1];
    const last = new Uint8Array(element.key.length).fill(0xff); // to the end, where nothing is behind it
    if (next) {
      const before = BigInt(hex(next.key)) - 1n;
      last.set(Buffer.from(before.toString(16).padStart(2 * last.length, '0'), 'hex'));
    }
    return [rangeText(element.key, last, write) + times(element)];
  });
}

/** @param {import('linux-tproxy/netlink').NftCounter} counter */
export const counterText = ({ name, packets, bytes }) => [
  `counter ${name} {`,
  `\tpackets ${packets} bytes ${bytes}`,
  '}',
];

/** @param {import('linux-tproxy/netlink').NftSet} set @param {readonly string[]} elements */
export function setText(set, elements) {
  const { autoMerge } = decodeSetUserdata(set.userdata);
  const flags = (set.flags ?? []).map((flag) => (flag === 'eval' ? 'dynamic' : flag));
  const order = ['constant', 'dynamic', 'interval', 'timeout'];
  flags.sort((a, b) => order.indexOf(String(a)) - order.indexOf(String(b)));
  return [
    `set ${set.name} {`,
    `\ttype ${TYPES[set.keyType]?.name ?? set.keyType}`,
    ...(set.size ? [`\tsize ${set.size}`] : []),
    ...(flags.length ? [`\tflags ${flags.join(',')}`] : []),
    ...(set.timeoutMs ? [`\ttimeout ${duration(set.timeoutMs)}`] : []),
    ...(autoMerge ? ['\tauto-merge'] : []),
    ...(elements.length ? [`\telements = { ${elements.join(', ')} }`] : []),
    '}',
  ];
}

/** @param {import('linux-tproxy/netlink').NftChain} chain @param {readonly string[]} rules */
export function chainText(chain, rules) {
  const { type, hook, priority = 0, policy } = chain;
  /** @type {Record<number, string>} */
  const names = PRIORITIES;
  const head = type ? [`\ttype ${type} hook ${hook} priority ${names[priority] ?? priority}; policy ${policy};`] : [];
  return [`chain ${chain.name} {`, ...[...head, ...rules.map((rule) => `\t${rule}`)], '}'];
}

/** @param {import('linux-tproxy/netlink').NftTable} table @param {readonly (readonly string[])[]} blocks */
export function tableText(table, blocks) {
  const comment = decodeComment(table.userdata);
  return [
    `table ${table.family} ${table.name} {`,
    ...(table.flags?.length ? [`\tflags ${table.flags.join(',')}`] : []),
    ...(comment === undefined ? [] : [`\tcomment "${comment}"`]),
    ...blocks.flatMap((lines, at) => [
      ...(at > 0 || table.flags?.length ? [''] : []),
      ...lines.map((line) => `\t${line}`),
    ]),
    '}',
  ];
}
