/**
 * A small `nft`, written with linux-tproxy/netlink: lists the rule set as `nft` prints it, adds, deletes and flushes what rules
 * stand in, and tells of changes: `npm start -- help`.
 */
import { decodeComment, NftablesSocket, RouteSocket } from 'linux-tproxy/netlink';
import { baseOf, elementList, elementsOf, keysOf } from './parse.mjs';
import { chainText, counterText, elementTexts, ruleText, setText, tableText } from './print.mjs';

const help = `usage: npm start -- list ruleset | { table FAMILY TABLE } | { set FAMILY TABLE SET } | { counter FAMILY TABLE COUNTER }
       npm start -- add | delete table FAMILY TABLE
       npm start -- add | delete chain FAMILY TABLE CHAIN [ type TYPE hook HOOK priority NUMBER [ policy VERDICT ] ]
       npm start -- add | delete set FAMILY TABLE SET [ type TYPE [ flags interval,timeout ] [ timeout DURATION ] ]
       npm start -- add | delete element FAMILY TABLE SET { ELEMENT [ timeout DURATION ] }...
       npm start -- get element FAMILY TABLE SET ELEMENT...
       npm start -- add | delete counter FAMILY TABLE COUNTER
       npm start -- reset counters | { counter FAMILY TABLE COUNTER }
       npm start -- flush ruleset | { table FAMILY TABLE } | { chain FAMILY TABLE CHAIN } | { set FAMILY TABLE SET }
       npm start -- monitor

  TYPE     := ipv4_addr | ipv6_addr | inet_service | ifname
  ELEMENT  := 192.0.2.1 | 10.0.0.0/8 | 80 | 1000-2000 | eth0 ...
  DURATION := 1h30m ...
`;

/** @typedef {import('linux-tproxy/netlink').NftObject} NftObject */
/** @typedef {import('linux-tproxy/netlink').NftTable} NftTable */
/** @typedef {import('linux-tproxy/netlink').NftSet} NftSet */
/** @typedef {import('linux-tproxy/netlink').NftElement} NftElement */
const socket = new NftablesSocket();

/** @param {NftSet} set @param {readonly NftElement[]} elements */
const textsOf = ({ keyType, flags }, elements) => elementTexts(elements, keyType, flags?.includes('interval') ?? false);

/** @param {NftSet} set */
async function textsIn(set) {
  const [found] = await socket.list('elements', { family: set.family, table: set.table, set: set.name });
  return textsOf(set, found?.elements ?? []);
}

/** What `nft list table` prints. @param {NftTable} table */
async function wholeTable(table) {
  const route = new RouteSocket();
  const devices = new Map((await route.linkList()).map(({ index, name }) => [index, name]));
  await route.close();
  const inTable = { family: table.family, table: table.name };
  const sets = await socket.list('set', inTable);
  /** @type {Map<string, string[]>} */
  const elements = new Map();
  for (const set of sets) elements.set(set.name, await textsIn(set));
  const look = {
    elements: (/** @type {string} */ set) => `{ ${elements.get(set)?.join(', ')} }`,
    device: (/** @type {number} */ index) => devices.get(index) ?? String(index),
  };
  const rules = (await socket.list('rule', inTable)).map(({ chain, expressions, userdata }) => {
    const comment = decodeComment(userdata);
    return { chain, text: ruleText(expressions, look) + (comment === undefined ? '' : ` comment "${comment}"`) };
  });
  return tableText(table, [
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
  ]);
}

/** Something of a table, and nothing else of it. @param {{ family: NftTable['family'], table: string }} of @param {readonly string[]} block */
const inItsTable = ({ family, table }, block) => tableText({ kind: 'table', family, name: table }, [block]);

/** @param {string | undefined} kind @param {string[]} words @returns {Promise<NftObject>} */
async function objectOf(kind, [family, table, name = '', ...rest]) {
  if (!family || !table || (kind !== 'table' && !name)) throw new TypeError(help);
  const inTable = { family: /** @type {NftTable['family']} */ (family), table };
  if (kind === 'table') return { kind, family: inTable.family, name: table };
  if (kind === 'counter') return { kind, ...inTable, name };
  if (kind === 'chain') return { kind, ...inTable, name, ...baseOf(rest) };
  if (kind === 'set') return { kind, ...inTable, name, ...keysOf(rest) };
  if (kind === 'element') {
    const set = await socket.get({ kind: 'set', ...inTable, name });
    return { kind: 'elements', ...inTable, set: name, elements: elementList(rest, set) };
  }
  throw new TypeError(help);
}

/** @param {string | undefined} kind @param {string[]} words @returns {Promise<string[]>} */
async function list(kind, words) {
  const tables = await socket.list('table');
  if (kind === 'ruleset') return (await Promise.all(tables.map(wholeTable))).flat();
  const object = await objectOf(kind, words);
  if (object.kind === 'table') {
    const { family, name } = object;
    return wholeTable(await socket.get({ kind: 'table', family, name }));
  }
  if (object.kind !== 'set' && object.kind !== 'counter') throw new TypeError(help);
  const { family, table, name } = object;
  if (object.kind === 'counter')
    return inItsTable(object, counterText(await socket.get({ kind: 'counter', family, table, name })));
  const set = await socket.get({ kind: 'set', family, table, name });
  return inItsTable(set, setText(set, await textsIn(set)));
}

/** @param {string[]} words */
async function getElements([family = '', table = '', name = '', ...words]) {
  const inTable = { family: /** @type {NftTable['family']} */ (family), table };
  const set = await socket.get({ kind: 'set', ...inTable, name });
  // One by one: an interval that goes to the last key has no end, which the next one's beginning must not be taken for.
  const found = await Promise.all(
    words.map((word) => {
      const elements = elementsOf(word, set).map(({ userdata: _, ...key }) => key);
      return socket.get({ kind: 'elements', ...inTable, set: name, elements });
    }),
  );
  return inItsTable(
    set,
    setText(
      set,
      found.flatMap(({ elements }) => textsOf(set, elements)),
    ),
  );
}

/** @param {string | undefined} kind @param {string[]} words */
async function reset(kind, [family, table, counter]) {
  if (kind === 'counters') {
    const counters = await socket.resetCounters();
    return (await socket.list('table')).flatMap((each) => {
      const inside = counters.filter((one) => one.family === each.family && one.table === each.name);
      return inside.length > 0 ? inItsTable({ ...each, table: each.name }, inside.flatMap(counterText)) : [];
    });
  }
  if (kind !== 'counter' || !family || !table || !counter) throw new TypeError(help);
  const filter = { family: /** @type {NftTable['family']} */ (family), table, counter };
  return (await socket.resetCounters(filter)).flatMap((one) => inItsTable(one, counterText(one)));
}

/** What `nft monitor` prints of a change. @param {import('linux-tproxy/netlink').NftOperation} operation */
function changeText({ verb, object }) {
  const { kind, family } = object;
  const where = 'table' in object ? `${family} ${object.table} ` : `${family} `;
  const what = kind === 'elements' ? object.set : kind === 'rule' ? object.chain : object.name;
  return `${verb} ${kind === 'elements' ? 'element' : kind} ${where}${what}`;
}

/** @param {readonly string[]} lines */
const print = (lines) => {
  if (lines.length > 0) console.log(lines.join('\n'));
};
const [verb = 'list', kind = 'ruleset', ...rest] = process.argv.slice(2);
try {
  if (verb === 'list') print(await list(kind, rest));
  else if (verb === 'get' && kind === 'element') print(await getElements(rest));
  else if (verb === 'reset') print(await reset(kind, rest));
  else if (verb === 'flush' && kind === 'ruleset')
    await socket.commit((await socket.list('table')).map((object) => ({ verb: 'delete', object })));
  else if (verb === 'add' || verb === 'delete') await socket.commit([{ verb, object: await objectOf(kind, rest) }]);
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
