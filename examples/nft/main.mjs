/**
 * A small `nft`, written with linux-tproxy/netlink: lists the rule set as `nft` prints it, adds, deletes and flushes what rules
 * stand in, and tells of changes: `npm start -- help`.
 */
import { isIPv4, isIPv6 } from 'node:net';
import { decodeComment, NftablesSocket, RouteSocket } from 'linux-tproxy/netlink';
import { chainText, counterText, elementTexts, ruleText, setText, TYPES, tableText } from './print.mjs';

const help = `usage: npm start -- list ruleset
       npm start -- add | delete table FAMILY TABLE
       npm start -- add | delete chain FAMILY TABLE CHAIN [ type TYPE hook HOOK priority NUMBER [ policy VERDICT ] ]
       npm start -- add | delete set FAMILY TABLE SET [ type ipv4_addr | ipv6_addr | inet_service | ifname ]
       npm start -- add | delete element FAMILY TABLE SET ELEMENT...
       npm start -- add | delete | reset counter FAMILY TABLE COUNTER
       npm start -- flush ruleset | { table FAMILY TABLE } | { chain FAMILY TABLE CHAIN } | { set FAMILY TABLE SET }
       npm start -- monitor
`;

/** @typedef {import('linux-tproxy/netlink').NftObject} NftObject */
const socket = new NftablesSocket();

async function ruleset() {
  const route = new RouteSocket();
  const devices = new Map((await route.linkList()).map(({ index, name }) => [index, name]));
  await route.close();
  const lines = [];
  for (const table of await socket.list('table')) {
    const inTable = { family: table.family, table: table.name };
    const sets = await socket.list('set', inTable);
    /** @type {Map<string, string[]>} */
    const elements = new Map();
    for (const set of sets) {
      const [found] = await socket.list('elements', { ...inTable, set: set.name });
      elements.set(
        set.name,
        elementTexts(found?.elements ?? [], set.keyType, set.flags?.includes('interval') ?? false),
      );
    }
    const look = {
      elements: (/** @type {string} */ set) => `{ ${elements.get(set)?.join(', ')} }`,
      device: (/** @type {number} */ index) => devices.get(index) ?? String(index),
    };
    const rules = (await socket.list('rule', inTable)).map(({ chain, expressions, userdata }) => {
      const comment = decodeComment(userdata);
      return { chain, text: ruleText(expressions, look) + (comment === undefined ? '' : ` comment "${comment}"`) };
    });
    const blocks = [
      ...(await socket.list('counter', inTable)).map(counterText),
      ...sets
        .filter(({ flags }) => !flags?.includes('anonymous'))
        .map((set) => setText(set, elements.get(set.name) ?? [])),
      ...(await socket.list('chain', inTable)).map((chain) =>
        chainText(
          chain,
          rules.filter((rule) => rule.chain === chain.name).map(({ text }) => text),
        ),
      ),
    ];
    lines.push(...tableText(table, blocks));
  }
  return lines.join('\n');
}

/** `name value name value ...` @param {readonly string[]} words @returns {Record<string, string | undefined>} */
const pairs = (words) =>
  Object.fromEntries(Array.from({ length: words.length / 2 }, (_, i) => [words[2 * i], words[2 * i + 1]]));

/** @param {string} text @param {number} keyType */
function keyOf(text, keyType) {
  const bytes = Buffer.alloc(TYPES[keyType]?.length ?? 0);
  if (keyType === 13) bytes.writeUInt16BE(Number(text));
  else if (keyType === 7 && isIPv4(text)) bytes.set(text.split('.').map(Number));
  else if (keyType === 8 && isIPv6(text)) {
    const [head = [], tail = []] = text.split('::').map((half) => half.split(':').filter(Boolean));
    const groups = [...head, ...Array(8 - head.length - tail.length).fill('0'), ...tail];
    for (const [at, group] of groups.entries()) bytes.writeUInt16BE(Number.parseInt(group, 16), 2 * at);
  } else if (keyType === 41) bytes.write(text);
  else throw new TypeError(`'${text}' is not ${TYPES[keyType]?.name ?? 'of a type that is known here'}`);
  return bytes;
}

/** @param {string | undefined} kind @param {string[]} words @returns {Promise<NftObject>} */
async function objectOf(kind, [family, table, name, ...rest]) {
  if (!family || !table || (kind !== 'table' && !name)) throw new TypeError(help);
  const inTable = { family: /** @type {import('linux-tproxy/netlink').NftFamily} */ (family), table };
  if (kind === 'table') return { kind, family: inTable.family, name: table };
  if (kind === 'counter') return { kind, ...inTable, name: String(name) };
  if (kind === 'chain') {
    const { type, hook, priority, policy = 'accept' } = pairs(rest);
    const base = type && {
      type,
      hook: /** @type {'input'} */ (hook),
      priority: Number(priority),
      policy: /** @type {'accept'} */ (policy),
    };
    return { kind, ...inTable, name: String(name), ...base };
  }
  if (kind === 'set') {
    const { type = 'ipv4_addr' } = pairs(rest);
    const found = Object.entries(TYPES).find(([, each]) => each.name === type);
    if (!found) throw new TypeError(`'${type}' is not a type that is known here`);
    return { kind, ...inTable, name: String(name), keyType: Number(found[0]), keyLength: found[1].length };
  }
  if (kind === 'element') {
    const set = await socket.get({ kind: 'set', ...inTable, name: String(name) });
    return {
      kind: 'elements',
      ...inTable,
      set: set.name,
      elements: rest.map((text) => ({ key: keyOf(text, set.keyType) })),
    };
  }
  throw new TypeError(help);
}

/** What `nft monitor` prints of a change. @param {import('linux-tproxy/netlink').NftOperation} operation */
function changeText({ verb, object }) {
  const { kind, family } = object;
  const where = 'table' in object ? `${family} ${object.table} ` : `${family} `;
  const what = kind === 'elements' ? object.set : kind === 'rule' ? object.chain : object.name;
  return `${verb} ${kind === 'elements' ? 'element' : kind} ${where}${what}`;
}

const [verb = 'list', kind, ...rest] = process.argv.slice(2);
try {
  if (verb === 'list' && kind === 'ruleset') {
    const text = await ruleset();
    if (text) console.log(text);
  } else if (verb === 'flush' && kind === 'ruleset')
    await socket.commit((await socket.list('table')).map((object) => ({ verb: 'delete', object })));
  else if (verb === 'reset' && kind === 'counter') {
    const { family, table, name } = /** @type {import('linux-tproxy/netlink').NftCounter} */ (
      await objectOf(kind, rest)
    );
    for (const counter of await socket.resetCounters({ family, table, counter: name }))
      console.log(counterText(counter).join('\n'));
  } else if (verb === 'add' || verb === 'delete') await socket.commit([{ verb, object: await objectOf(kind, rest) }]);
  else if (verb === 'flush') {
    const object = await objectOf(kind, rest);
    if (object.kind !== 'table' && object.kind !== 'chain' && object.kind !== 'set') throw new TypeError(help);
    await socket.commit([{ verb, object }]);
  } else if (verb === 'monitor') {
    socket.watch((changes) => {
      for (const change of changes)
        if (change.kind === 'batch') for (const operation of change.operations) console.log(changeText(operation));
    });
    setInterval(() => {}, 1e9); // a watch does not keep the process alive
  } else console.log(help);
} catch (error) {
  console.error(/** @type {Error} */ (error).message); // what was tried, what the kernel said, and what may help
  process.exitCode = 1;
}
