/**
 * `ip rule`, written with linux-tproxy/netlink: lists policy rules as `ip` prints them, adds and deletes them, and tells of
 * changes: `npm start -- help`.
 */
import { readWords, run, short, TABLES, tableOf } from '../ip.mjs';

const help = `usage: npm start -- [-4 | -6] [list]
       npm start -- [-4 | -6] add | del SELECTOR ACTION
       npm start -- monitor

  SELECTOR := [ not ] [ from PREFIX ] [ to PREFIX ] [ iif IF ] [ oif IF ] [ fwmark VALUE[/MASK] ] [ pref NUMBER ] [ proto NUMBER ]
  ACTION   := lookup TABLE | goto NUMBER | nop | blackhole | unreachable | prohibit
`;

/** @param {import('linux-tproxy/netlink').Rule} rule */
function format(rule) {
  const address = (/** @type {string} */ prefix) => short(prefix, rule.family);
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
  return readWords(words, rule, {
    not: () => ({ invert: true }),
    from: (word) => ({ from: word }),
    to: (word) => ({ to: word }),
    iif: (word) => ({ iif: word }),
    oif: (word) => ({ oif: word }),
    fwmark(word) {
      const [value = 0, mask = 0xffffffff] = word.split('/').map(Number);
      return { fwmark: { value, mask } };
    },
    pref: (word) => ({ priority: Number(word) }),
    proto: (word) => ({ protocol: Number(word) }),
    lookup: (word) => ({ action: 'lookup', table: tableOf(word) }),
    goto: (word) => ({ action: 'goto', goto: Number(word) }),
    nop: () => ({ action: 'nop' }),
    blackhole: () => ({ action: 'blackhole' }),
    unreachable: () => ({ action: 'unreachable' }),
    prohibit: () => ({ action: 'prohibit' }),
  });
}

await run({
  help,
  list: async (socket, family) => (await socket.ruleList(family)).map(format),
  add: (socket, family, words) => socket.ruleAdd(parse(family, words)),
  del: (socket, family, words) => socket.ruleDelete(parse(family, words)),
  told: (change) => (change.kind === 'rule' ? format(change.rule) : undefined),
});
