/**
 * `ip rule`, written with linux-tproxy/netlink: lists policy rules as `ip` prints them, adds and deletes them, and tells of
 * changes: `npm start -- help`.
 */
import { RouteSocket } from 'linux-tproxy/netlink';

const help = `usage: npm start -- [-4 | -6] [list]
       npm start -- [-4 | -6] add | del SELECTOR ACTION
       npm start -- monitor

  SELECTOR := [ not ] [ from PREFIX ] [ to PREFIX ] [ iif IF ] [ oif IF ] [ fwmark VALUE[/MASK] ] [ pref NUMBER ] [ proto NUMBER ]
  ACTION   := lookup TABLE | goto NUMBER | nop | blackhole | unreachable | prohibit
`;
/** @type {Record<string, number>} */
const TABLES = { default: 253, main: 254, local: 255 };

/** @param {import('linux-tproxy/netlink').Rule} rule */
function format(rule) {
  const address = (/** @type {string} */ prefix) => prefix.replace(rule.family === 'ipv4' ? /\/32$/ : /\/128$/, '');
  const hex = (/** @type {number} */ number) => `0x${number.toString(16)}`;
  const tableName = Object.entries(TABLES).find(([, number]) => number === rule.table)?.[0] ?? rule.table;
  const words = [
    `${rule.priority}:\t${rule.invert ? 'not ' : ''}from ${address(rule.from ?? 'all')}`,
    rule.to && `to ${address(rule.to)}`,
    rule.fwmark &&
      `fwmark ${hex(rule.fwmark.value)}${rule.fwmark.mask === 0xffffffff ? '' : `/${hex(rule.fwmark.mask)}`}`,
    rule.iif && `iif ${rule.iif}`,
    rule.oif && `oif ${rule.oif}`,
    rule.action === 'lookup' ? `lookup ${tableName}` : rule.action === 'goto' ? `goto ${rule.goto}` : rule.action,
  ];
  return words.filter(Boolean).join(' ');
}

/**
 * @param {'ipv4' | 'ipv6'} family
 * @param {string[]} words
 * @returns {import('linux-tproxy/netlink').Rule}
 */
function parse(family, words) {
  /** @type {import('linux-tproxy/netlink').Rule} */
  const rule = { family, action: 'lookup' };
  /** @type {Record<string, (word: string) => object>} */
  const take = {
    not: () => ({ invert: true }),
    from: (word) => ({ from: word }),
    to: (word) => ({ to: word }),
    iif: (word) => ({ iif: word }),
    oif: (word) => ({ oif: word }),
    fwmark(word) {
      const [value, mask = 0xffffffff] = word.split('/').map(Number);
      return { fwmark: { value, mask } };
    },
    pref: (word) => ({ priority: Number(word) }),
    proto: (word) => ({ protocol: Number(word) }),
    lookup: (word) => ({ action: 'lookup', table: TABLES[word] ?? Number(word) }),
    goto: (word) => ({ action: 'goto', goto: Number(word) }),
    nop: () => ({ action: 'nop' }),
    blackhole: () => ({ action: 'blackhole' }),
    unreachable: () => ({ action: 'unreachable' }),
    prohibit: () => ({ action: 'prohibit' }),
  };
  for (let word = words.shift(); word !== undefined; word = words.shift()) {
    const read = take[word];
    const value = read?.length ? words.shift() : '';
    if (!read || value === undefined) throw new TypeError(`'${word}' cannot be understood\n${help}`);
    Object.assign(rule, read(value));
  }
  return rule;
}

const words = process.argv.slice(2);
/** @type {Record<string, 'ipv4' | 'ipv6'>} */
const families = { '-4': 'ipv4', '-6': 'ipv6' };
const family = families[words[0] ?? ''] ?? 'ipv4';
if (families[words[0] ?? '']) words.shift();
const [verb = 'list', ...rest] = words;
const socket = new RouteSocket();
try {
  if (verb === 'list') for (const rule of await socket.ruleList(family)) console.log(format(rule));
  else if (verb === 'add') await socket.ruleAdd(parse(family, rest));
  else if (verb === 'del') await socket.ruleDelete(parse(family, rest));
  else if (verb === 'monitor') {
    socket.watch((changes) => {
      for (const change of changes)
        if (change.kind === 'rule') console.log(`${change.verb === 'delete' ? 'Deleted ' : ''}${format(change.rule)}`);
    });
    setInterval(() => {}, 1e9); // a watch does not keep the process alive
  } else console.log(help);
} catch (error) {
  console.error(/** @type {Error} */ (error).message); // what was tried, what the kernel said, and what may help
  process.exitCode = 1;
}
