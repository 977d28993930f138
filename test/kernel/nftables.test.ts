/** nf_tables against the kernel, and against what `nft` says of it. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { NetlinkError } from '../../src/errors.js';
import { NftablesSocket, prepare } from '../../src/netlink/nftables.js';
import type { NftElement, NftExpression, NftObject, NftOperation, NftSet, NftTable } from '../../src/netlink/types.js';
import { decodeComment, decodeSetUserdata, encodeComment } from '../../src/netlink/userdata.js';
import { compiled } from '../helpers/compiled.js';
import { enterNamespaces } from '../helpers/namespaces.js';
import * as nft from '../helpers/nft.js';
import { refusal } from '../helpers/refusal.js';
import { ruleset } from '../helpers/ruleset.js';
import { until } from '../helpers/wait.js';

enterNamespaces();

const nftCommand = (text: string): string => execFileSync('nft', ['-f', '-'], { input: text, encoding: 'utf8' });
const listed = (): string => execFileSync('nft', ['list', 'ruleset'], { encoding: 'utf8' });
/** A program that sees NftablesSocket and `commit`, in a process of its own. */
function program(body: string): string[] {
  const source = `import { NftablesSocket } from '${compiled('src/netlink/nftables.ts')}'; const socket = new NftablesSocket(); ${body}`;
  return [process.execPath, '--input-type=module', '-e', source];
}

const test = suite('kernel nf_tables');
let socket: NftablesSocket;
test.before(() => {
  socket = new NftablesSocket();
});
test.after(() => socket.close());
test.after.each(() => {
  execFileSync('nft', ['flush', 'ruleset']);
});

const tableX: NftTable = { kind: 'table', family: 'inet', name: 'x' };
const chainC = { kind: 'chain', family: 'inet', table: 'x', name: 'c' } as const;
const inC = (...expressions: NftExpression[]) =>
  ({ kind: 'rule', family: 'inet', table: 'x', chain: 'c', expressions }) as const;
const add = (...objects: NftObject[]): NftOperation[] => objects.map((object) => ({ verb: 'add', object }));

// ---- what we add is what is there -----------------------------------------------------------------------------------------

for (const [name, options] of Object.entries({
  intercept: {},
  'own-host': { ownHost: true },
  everything: { ownHost: true, closed: true, zones: true },
}))
  test(`the rule set (${name}) is to nft what its text is`, async () => {
    await socket.commit(ruleset(options).operations);
    const ours = listed();
    await socket.commit([{ verb: 'delete', object: { kind: 'table', family: 'inet', name: 'linux-tproxy-50080' } }]);
    assert.is(listed(), '');
    execFileSync('nft', ['-f', `test/golden/nft/${name}.nft`]);
    assert.is(ours, listed());
  });

/** The same object as the kernel tells it: set ids are of the batch, handles and anonymous names are the kernel's. */
function asListed(object: NftObject, handle: bigint | undefined): NftObject {
  if (object.kind === 'rule')
    return {
      ...object,
      ...(handle === undefined ? {} : { handle }),
      expressions: object.expressions.map((expression) => {
        if (expression.kind !== 'lookup' && expression.kind !== 'dynset') return expression;
        const { setId, ...known } = expression;
        return known;
      }),
    };
  if (object.kind === 'set') {
    const { id, ...known } = object;
    return { ...known, ...(handle === undefined ? {} : { handle }) };
  }
  return { ...object, ...(handle === undefined ? {} : { handle }) } as NftObject;
}
const withoutAnonymousNumber = (object: NftObject): NftObject => {
  if (object.kind === 'set') return { ...object, name: object.name.replace(/^__set\d+$/, '__set%d') };
  if (object.kind !== 'rule') return object;
  const named = (e: NftExpression) => (e.kind === 'lookup' ? { ...e, set: e.set.replace(/^__set\d+$/, '__set%d') } : e);
  return { ...object, expressions: object.expressions.map(named) };
};

test('tables, chains, sets and rules read back as they were added', async () => {
  const { operations } = ruleset({ ownHost: true, closed: true, zones: true });
  await socket.commit(operations);
  for (const kind of ['table', 'chain', 'set', 'rule'] as const) {
    const found = (await socket.list(kind)).map(withoutAnonymousNumber) as { handle?: bigint }[];
    // The kernel lists rules chain by chain.
    const chains = operations.flatMap(({ object }) => (object.kind === 'chain' ? [object.name] : []));
    const added = operations.map(({ object }) => object).filter((object) => object.kind === kind);
    if (kind === 'rule')
      added.sort(
        (a, b) => chains.indexOf((a as { chain: string }).chain) - chains.indexOf((b as { chain: string }).chain),
      );
    assert.ok(found.every(({ handle }) => typeof handle === 'bigint'));
    assert.equal(
      found,
      added.map((object, i) => asListed(object, found[i]?.handle)),
    );
  }
  const tcp = { family: 'inet', table: 'linux-tproxy-50080', set: 'tcp_ports' } as const;
  assert.equal(await socket.list('elements', tcp), [
    { kind: 'elements', ...tcp, elements: nft.portRanges([80, 80], [9001, 9001]) },
  ]);
});

// ---- counters, and objects one by one ---------------------------------------------------------------------------------------

const web = { kind: 'counter', family: 'inet', table: 'x', name: 'web' } as const;

test('counters: added, counted into by a rule, listed, reset, deleted', async () => {
  const base = { type: 'filter', hook: 'output', priority: 0, policy: 'accept' } as const;
  await socket.commit([
    ...add(tableX, { ...chainC, ...base }, { ...web, packets: 3n, bytes: 400n }, { ...web, name: 'other' }),
    ...add(inC({ kind: 'objref', type: 'counter', name: 'web' })),
  ]);
  assert.match(listed(), 'counter name "web"');
  assert.match(listed(), 'packets 3 bytes 400');
  nftCommand('add table inet y\nadd counter inet y web\nadd quota inet x much { over 1 mbytes }');
  assert.equal(
    (await socket.list('counter', { family: 'inet', table: 'x' })).map(({ handle: _, ...one }) => one),
    [
      { ...web, packets: 3n, bytes: 400n, use: 1 },
      { ...web, name: 'other', packets: 0n, bytes: 0n, use: 0 },
    ],
  );
  assert.is((await socket.list('counter')).length, 3);
  execFileSync('ip', ['link', 'set', 'lo', 'up']);
  execFileSync('bash', ['-c', 'printf x >/dev/udp/127.0.0.1/9']);
  const [counted] = await socket.list('counter', { counter: 'web', table: 'x' });
  assert.ok((counted?.packets ?? 0n) > 3n);
  assert.equal(
    (await socket.resetCounters({ family: 'inet', table: 'x', counter: 'web' })).map(({ packets }) => packets),
    [counted?.packets],
  );
  assert.is((await socket.get(web)).packets, 0n);
  nftCommand('add counter inet y seven { packets 7 bytes 8 }');
  assert.equal((await socket.resetCounters({ table: 'x' })).length, 2);
  assert.is((await socket.get({ ...web, table: 'y', name: 'seven' })).packets, 7n);
  assert.is(
    (await refusal(socket.resetCounters({ ...{ family: 'inet', table: 'x' }, counter: 'none' }))).code,
    'ENOENT',
  );
  assert.match(String(await socket.resetCounters({ counter: 'web' }).catch((error: unknown) => error)), /filter/);
  assert.is((await refusal(socket.commit([{ verb: 'delete', object: web }]))).code, 'EBUSY');
  await socket.commit([{ verb: 'delete', object: { ...web, name: 'other' } }]);
  assert.equal(
    (await socket.list('counter', { table: 'x' })).map(({ name }) => name),
    ['web'],
  );
});

test('get: one object, by its name or handle', async () => {
  const set = {
    kind: 'set',
    family: 'inet',
    table: 'x',
    name: 's',
    keyType: nft.TYPE.ipv4_addr,
    keyLength: 4,
  } as const;
  const other: NftObject = { ...chainC, name: 'd' };
  await socket.commit(add(tableX, chainC, other, set, web, inC(nft.meta('mark')), inC(nft.meta('iif'))));
  const [, rule] = await socket.list('rule', { table: 'x' });
  const ofRule = { kind: 'rule', family: 'inet', table: 'x', chain: 'c', handle: rule?.handle ?? 0n } as const;
  assert.equal(await socket.get(ofRule), rule);
  for (const wanted of [tableX, chainC, set, web] as const) {
    const [found] = (await socket.list(wanted.kind, { family: 'inet' })).filter(({ name }) => name === wanted.name);
    const { kind, family, name } = wanted;
    const key = kind === 'table' ? { kind, family, name } : ({ kind, family, name, table: 'x' } as const);
    assert.equal(await socket.get(key), found);
    assert.is((await refusal(socket.get({ ...key, name: 'none' }))).code, 'ENOENT');
  }
  assert.match(String(await socket.get({ ...tableX, table: 'x' } as never).catch((error: unknown) => error)), /key/);
});

test('get: elements, by their keys; of intervals by any key inside', async () => {
  nftCommand(`table inet x {
    set single { type ipv4_addr; flags timeout; elements = { 192.0.2.1 timeout 1h, 192.0.2.2 timeout 1h }; }
    set ports { type inet_service; flags interval; elements = { 80, 90-100, 1000-65535 }; }
    set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90 }; }
  }`);
  const get = (set: string, ...elements: readonly Omit<NftElement, 'userdata'>[]) =>
    socket.get({ kind: 'elements', family: 'inet', table: 'x', set, elements });
  const found = await get('single', { key: nft.ip4('192.0.2.2') }, { key: nft.ip4('192.0.2.1') });
  assert.equal(
    found.elements.map(({ key, timeoutMs }) => [key, timeoutMs]),
    [
      [nft.ip4('192.0.2.2'), 3_600_000n],
      [nft.ip4('192.0.2.1'), 3_600_000n],
    ],
  );
  const port = (number: number) => ({ key: nft.be16(number) });
  const end = (number: number) => ({ ...port(number), flags: ['intervalEnd'] as const });
  assert.equal((await get('ports', port(95), end(95), port(80))).elements, [port(90), end(101), port(80)]);
  const [open, ...behind] = (await get('ports', port(2000), end(2000))).elements;
  assert.equal([open?.key, behind], [nft.be16(1000), []]);
  const pair = { key: nft.bytes('0a00000000500000'), keyEnd: nft.bytes('0affffff005a0000') };
  assert.equal((await get('pairs', { key: nft.bytes('0a01020300550000') })).elements, [pair]);
  assert.equal((await get('pairs', pair)).elements, [pair]);
  for (const missing of [get('ports', port(80), port(85)), get('none', port(80))])
    assert.is((await refusal(missing)).code, 'ENOENT');
  assert.equal((await socket.list('table')).length, 1); // the answers that came before the refusal are not taken for others
  assert.match((await refusal(get('ports', { ...port(80), timeoutMs: 1n }))).message, /key\.elements\[0\]/);
});

test('changes of counters are told; of objects without a word, only their batch', async () => {
  const told: NftOperation[][] = [];
  const end = socket.watch((changes) => {
    for (const change of changes) if (change.kind === 'batch') told.push([...change.operations]);
  });
  nftCommand('add table inet x\nadd counter inet x web');
  nftCommand('add quota inet x much { over 1 mbytes }');
  nftCommand('delete quota inet x much');
  nftCommand('delete counter inet x web');
  await until(() => told.length >= 4, 'all are told');
  end();
  const words = told.map((operations) => operations.map(({ verb, object }) => `${verb} ${object.kind}`));
  assert.equal(words, [['add table', 'add counter'], [], [], ['delete counter']]);
});

test('every expression reads back as it was added', async () => {
  const name = 'flows';
  const sources: NftSet = {
    ...{ kind: 'set', family: 'inet', table: 'x', name, keyType: nft.TYPE.ipv4_addr, keyLength: 4 },
    ...{ flags: ['timeout', 'eval'], size: 100, timeoutMs: 60_000n },
  };
  const expressions: readonly (readonly NftExpression[])[] = [
    ...['mark', 'iif', 'iifname', 'oif', 'nfproto', 'l4proto', 'skuid', 'cgroup', 'protocol', 'len', 24].map((key) => [
      { kind: 'meta', key, dreg: 1 } as NftExpression,
    ]),
    [nft.meta('mark'), { kind: 'meta', key: 'mark', sreg: 1 }],
    ...(['link', 'network', 'transport', 'inner'] as const).map((base): NftExpression[] => [
      { kind: 'payload', base, offset: 2, length: 4, dreg: 2 },
    ]),
    ...(['eq', 'neq', 'lt', 'lte', 'gt', 'gte'] as const).map((op): NftExpression[] => [
      nft.meta('mark'),
      { kind: 'cmp', sreg: 1, op, data: nft.host32(7) },
    ]),
    [nft.meta('mark'), { kind: 'bitwise', sreg: 1, dreg: 9, length: 4, mask: nft.host32(0xf0), xor: nft.host32(1) }],
    [nft.meta('mark'), { kind: 'byteorder', op: 'hton', sreg: 1, dreg: 1, length: 4, size: 4 }],
    [{ kind: 'immediate', dreg: 1, data: nft.bytes('20010db8000000000000000000000001') }],
    ...(['accept', 'drop', 'return', 'continue'] as const).map((verdict): NftExpression[] => [
      { kind: 'verdict', verdict },
    ]),
    [nft.jump('d')],
    [nft.go('d')],
    [nft.payload('network', 12, 4), { kind: 'lookup', set: name, sreg: 1, invert: true }],
    ...(['add', 'update', 'delete'] as const).map((op): NftExpression[] => [
      nft.payload('network', 12, 4),
      { kind: 'dynset', set: name, op, sregKey: 1, ...(op === 'delete' ? {} : { timeoutMs: 5000n }) },
    ]),
    [{ kind: 'fib', result: 'type', flags: ['daddr'], dreg: 1 }],
    [{ kind: 'fib', result: 'oif', flags: ['saddr', 'mark', 'iif'], dreg: 1 }],
    [{ kind: 'fib', result: 'oifname', flags: ['daddr'], dreg: 1 }],
    ...(['transparent', 'mark', 'wildcard'] as const).map((key): NftExpression[] => [{ kind: 'socket', key, dreg: 1 }]),
    [{ kind: 'socket', key: 'cgroupv2', level: 2, dreg: 1 }],
    [...nft.l4proto('tcp'), ...nft.tproxy('unspec', 50080)],
    [
      ...nft.l4proto('tcp'),
      { kind: 'immediate', dreg: 1, data: nft.ip4('127.0.0.1') },
      { kind: 'immediate', dreg: 2, data: nft.be16(50080) },
      { kind: 'tproxy', family: 'ip', regAddr: 1, regPort: 2 },
    ],
    [{ kind: 'ct', key: 'state', dreg: 1 }],
    [{ kind: 'ct', key: 'zone', direction: 'reply', dreg: 1 }],
    [...nft.setZone(84)],
    [{ kind: 'counter', packets: 3n, bytes: 2n ** 40n }],
  ];
  await socket.commit([
    ...add(
      tableX,
      { ...chainC, type: 'filter', hook: 'prerouting', priority: -150, policy: 'accept' },
      { ...chainC, name: 'd' },
      sources,
    ),
    ...expressions.flatMap((rule) => add(inC(...rule))),
  ]);
  const rules = await socket.list('rule', { family: 'inet', table: 'x', chain: 'c' });
  for (const [i, rule] of rules.entries()) assert.equal(rule.expressions, expressions[i]);
  assert.is(rules.length, expressions.length);
});

test('what we have no words for comes as it is', async () => {
  nftCommand('table inet x { chain c { limit rate 5/second accept; ct mark set ct mark | 1; tcp dport set 80; }; }');
  const [limit, ctMark, dport] = await socket.list('rule');
  const first = limit?.expressions[0];
  assert.ok(first?.kind === 'unknown' && first.name === 'limit' && first.data.length > 0);
  assert.equal(
    ctMark?.expressions.map(({ kind }) => kind),
    ['ct', 'bitwise', 'ct'],
  );
  // Writing into a packet is `payload` too, in another form.
  assert.ok(dport?.expressions.some((e) => e.kind === 'unknown' && e.name === 'payload'));
});

test('matches of iptables', async () => {
  const info = new Uint8Array(256);
  info.set(Buffer.from('words'));
  const comment: NftExpression = { kind: 'match', name: 'comment', revision: 0, info };
  await socket.commit(
    add(
      { kind: 'table', family: 'ip', name: 'x' },
      { kind: 'chain', family: 'ip', table: 'x', name: 'c', type: 'filter', hook: 'prerouting', priority: 0 },
      { ...inC(comment, nft.accept), family: 'ip' },
    ),
  );
  assert.equal((await socket.list('rule'))[0]?.expressions, [comment, nft.accept]);
});

test("what iptables' extensions are told of the protocol, or they refuse", async () => {
  const ports = Uint8Array.from([1, 1, 80, 0, ...Array(44).fill(0)]); // struct xt_multiport_v1: destination port 80
  const rule = inC({ kind: 'match', name: 'multiport', revision: 1, info: ports });
  const ip = (object: NftObject) => ({ ...object, family: 'ip' }) as NftObject;
  await socket.commit(add(ip(tableX), ip(chainC)));
  assert.is((await refusal(socket.commit(add(ip(rule))))).code, 'EINVAL');
  await socket.commit(add(ip({ ...rule, compatProtocol: 6, compatFlags: 0 })));
  assert.match(listed(), /dport|multiport/);
});

test('chains have comments, and what is not empty is not deleted by the way', async () => {
  const userdata = encodeComment('mine');
  await socket.commit(add(tableX, { ...chainC, userdata }, inC({ kind: 'verdict', verdict: 'accept' })));
  assert.match(listed(), 'comment "mine"');
  const [chain] = await socket.list('chain', { family: 'inet', table: 'x' });
  assert.is(decodeComment(chain?.userdata), 'mine');
  for (const object of [chainC, tableX])
    assert.is((await refusal(socket.commit([{ verb: 'deleteEmpty', object }]))).code, 'EBUSY');
  await socket.commit([{ verb: 'flush', object: chainC }]);
  for (const object of [chainC, tableX]) await socket.commit([{ verb: 'deleteEmpty', object }]);
  assert.is(listed(), '');
});

test('sets of every kind, their elements and comments', async () => {
  const table = new nft.Table('x', { userdata: encodeComment('a table') })
    .set(
      'addresses',
      { keyType: 7, keyLength: 4, flags: ['timeout'], timeoutMs: 60_000n, gcIntervalMs: 3000, policy: 'memory' },
      { keyByteorder: 'network', comment: 'a set' },
      [{ key: nft.ip4('1.2.3.4'), timeoutMs: 30_000n }],
    )
    .set(
      'pairs',
      { keyType: nft.concatenated(7, 13), keyLength: 8, flags: ['interval', 'concat'], concatenation: [4, 2] },
      { keyByteorder: 'none', keyExpression: { kind: 'concatenation' } },
      [{ key: nft.bytes('0a00000000500000'), keyEnd: nft.bytes('0affffff005a0000') }],
    )
    .set(
      'ports',
      { keyType: 13, keyLength: 2, flags: ['interval'] },
      { keyByteorder: 'network', autoMerge: true },
      nft.portRanges([1, 65535]),
    );
  await socket.commit(table.operations);
  const [{ userdata } = {}] = await socket.list('table', { table: 'x' });
  assert.is(decodeComment(userdata), 'a table');
  const sets = await socket.list('set', { table: 'x' });
  assert.equal(
    sets.map((set) => decodeSetUserdata(set.userdata)),
    [
      { keyByteorder: 'network', comment: 'a set' },
      { keyByteorder: 'none' },
      { keyByteorder: 'network', autoMerge: true },
    ],
  );
  const elementsOf = async (set: string) =>
    (await socket.list('elements', { family: 'inet', table: 'x', set }))[0]?.elements;
  const [address] = (await elementsOf('addresses')) ?? [];
  assert.equal([address?.key, address?.timeoutMs], [nft.ip4('1.2.3.4'), 30_000n]);
  assert.ok((address?.expiresMs ?? 0n) > 0n && (address?.expiresMs ?? 0n) <= 30_000n);
  assert.equal(await elementsOf('pairs'), [
    { key: nft.bytes('0a00000000500000'), keyEnd: nft.bytes('0affffff005a0000') },
  ]);
  assert.equal(await elementsOf('ports'), nft.portRanges([1, 65535]));
  const text = listed();
  for (const words of [
    'comment "a table"',
    'comment "a set"',
    'elements = { 10.0.0.0/8 . 80-90 }',
    'elements = { 1-65535 }',
  ])
    assert.ok(text.includes(words), `${words} in ${text}`);

  await socket.commit([{ verb: 'delete', object: table.elements('ports', nft.portRanges([1, 65535]).slice(1)) }]);
  await socket.commit([{ verb: 'flush', object: sets[0] as NftSet }]);
  assert.equal(await elementsOf('addresses'), []);
  assert.ok(!listed().includes('1-65535'));
});

// ---- verbs -------------------------------------------------------------------------------------------------------------------

test('rules: order, insertion at a place, deletion by handle, of a chain, of a table', async () => {
  const goTo = async () =>
    (await socket.list('rule', { table: 'x', chain: 'c' })).map(({ expressions: [e] }) =>
      e?.kind === 'verdict' ? e.verdict : '?',
    );
  const rule = (verdict: 'accept' | 'drop' | 'return' | 'continue') => inC({ kind: 'verdict', verdict });
  await socket.commit(add(tableX, chainC, rule('accept')));
  const [first] = await socket.list('rule');
  const handle = first?.handle as bigint;
  await socket.commit([
    { verb: 'add', object: rule('drop') },
    { verb: 'insert', object: rule('return') },
    { verb: 'add', object: { ...rule('continue'), position: handle } },
  ]);
  assert.equal(await goTo(), ['return', 'accept', 'continue', 'drop']);
  await socket.commit([{ verb: 'delete', object: { ...rule('accept'), handle } }]);
  assert.equal(await goTo(), ['return', 'continue', 'drop']);
  await socket.commit([{ verb: 'flush', object: chainC }]);
  assert.equal(await goTo(), []);
  await socket.commit([
    { verb: 'add', object: rule('drop') },
    { verb: 'flush', object: tableX },
    { verb: 'delete', object: chainC },
  ]);
  assert.equal(await socket.list('chain'), []);
  socket.commitSync([{ verb: 'delete', object: tableX }]);
  assert.is(listed(), '');
});

// ---- errors --------------------------------------------------------------------------------------------------------------------

test('errors: code, request, attribute, and each with the index of its operation; nothing is left', async () => {
  await socket.commit(add(tableX));
  const before = await socket.generation();
  const error = await refusal(
    socket.commit([
      ...add(chainC),
      { verb: 'create', object: tableX },
      ...add({ ...chainC, table: 'nowhere' }, { ...inC(nft.accept), chain: 'nothing' }),
      ...add(inC({ kind: 'unknown', name: 'teleport', data: new Uint8Array() })),
      { verb: 'delete', object: { ...chainC, name: 'gone' } },
    ]),
  );
  assert.equal(
    [error.code, error.errno, error.operation, error.request, error.attribute],
    ['EEXIST', -17, 'commit batch', 'NFT_MSG_NEWTABLE', 'NFTA_TABLE_NAME'],
  );
  assert.equal(
    error.errors?.map(({ index, code, request, attribute }) => [index, code, request, attribute]),
    [
      [1, 'EEXIST', 'NFT_MSG_NEWTABLE', 'NFTA_TABLE_NAME'],
      [2, 'ENOENT', 'NFT_MSG_NEWCHAIN', 'NFTA_CHAIN_TABLE'],
      [3, 'ENOENT', 'NFT_MSG_NEWRULE', 'NFTA_RULE_CHAIN'],
      [4, 'ENOENT', 'NFT_MSG_NEWRULE', 'NFTA_LIST_ELEM'],
      [5, 'ENOENT', 'NFT_MSG_DELCHAIN', 'NFTA_CHAIN_NAME'],
    ],
  );
  assert.is((await socket.generation()).id, before.id);
  assert.is(listed(), 'table inet x {\n}\n');
});

test('a dry run reports the same and leaves nothing', async () => {
  const before = await socket.generation();
  await socket.commit(add(tableX, chainC, inC(nft.accept)), { dryRun: true });
  const error = await refusal(
    socket.commit(add({ ...tableX, flags: [0x80] }, { ...chainC, table: 'z' }), { dryRun: true }),
  );
  assert.equal(
    error.errors?.map(({ index, code, attribute }) => [index, code, attribute]),
    [
      [0, 'EOPNOTSUPP', undefined],
      [1, 'ENOENT', 'NFTA_CHAIN_TABLE'],
    ],
  );
  assert.is(error.operation, 'check batch');
  assert.is((await socket.generation()).id, before.id);
  assert.is(listed(), '');
});

test('thousands of errors are all told', async () => {
  const count = 3000;
  const error = await refusal(socket.commit(Array.from({ length: count }, () => add(chainC)).flat()));
  assert.equal(
    error.errors?.map(({ index }) => index),
    Array.from({ length: count }, (_, i) => i),
  );
});

test('more errors than the buffer of an unprivileged socket holds: those that came, and the failure is told', () => {
  const body = `
    const chain = { kind: 'chain', family: 'inet', table: 'x', name: 'c' };
    const operations = Array.from({ length: 3000 }, () => ({ verb: 'add', object: chain }));
    const error = await socket.commit(operations).catch((error) => error);
    console.log(error.code, error.errors[0].index, error.errors.length > 100);`;
  const [file = '', ...args] = program(body);
  const out = execFileSync('unshare', ['--user', '--map-root-user', '--net', file, ...args], { encoding: 'utf8' });
  assert.is(out.trim(), 'ENOENT 0 true');
});

test('elements that are refused are told by the index of their operation, whatever message they were in', async () => {
  const table = new nft.Table('x').set('s', { keyType: 7, keyLength: 4 }, { keyByteorder: 'network' });
  await socket.commit(table.operations);
  const many = Array.from({ length: 6000 }, (_, i): NftElement => ({ key: nft.be32(0x0a000000 + i) }));
  const error = await refusal(
    socket.commit([
      ...add(table.elements('s', many), { ...chainC, table: 'nowhere' }, { ...table.elements('s', many), set: 'gone' }),
    ]),
  );
  assert.equal([...new Set(error.errors?.map(({ index }) => index))], [1, 2]);
});

// ---- generation, ownership, rights -------------------------------------------------------------------------------------------

test('a batch for another generation: ERESTART, of the batch as a whole', async () => {
  const { id, processId } = await socket.generation();
  await socket.commit(add(tableX), { generation: id });
  const after = await socket.generation();
  assert.equal([after.id, after.processName], [id + 1, 'node']);
  assert.type(processId, 'number');
  const error = await refusal(socket.commit(add(chainC), { generation: id }));
  assert.equal(
    [error.code, error.errno, error.request, error.errors],
    ['ERESTART', -85, 'NFNL_MSG_BATCH_BEGIN', undefined],
  );
});

test('operations prepared ahead are what they are: committed, committed again, checked, refused', async () => {
  const operations = prepare([...add(tableX), ...add(chainC)]);
  const { id } = await socket.generation();
  await socket.commit(operations, { dryRun: true });
  assert.is(listed(), '');
  assert.is((await refusal(socket.commit(operations, { generation: id - 1 }))).code, 'ERESTART');
  await socket.commit(operations, { generation: id });
  await socket.commit([{ verb: 'delete', object: tableX }]);
  for (let times = 0; times < 2; times++) {
    // At once, and when it has long been worked out.
    await socket.commit(operations);
    assert.is((await socket.list('chain')).length, 1);
    await socket.commit([{ verb: 'delete', object: tableX }]);
  }
  const counter: NftExpression = { kind: 'counter', packets: 0n, bytes: 0n };
  const tooLarge = prepare(add(inC(...Array<NftExpression>(5000).fill(counter))));
  for (let times = 0; times < 2; times++)
    assert.equal((({ code, operation }) => [code, operation])(await refusal(socket.commit(tooLarge))), [
      'EMSGSIZE',
      'encode',
    ]);
  assert.throws(() => prepare(5 as never), TypeError);
});

test('an owner table is the socket’s alone and goes with it', async () => {
  const owner = new NftablesSocket();
  await owner.commit(add({ ...tableX, flags: ['owner'] }, chainC));
  const [table] = await socket.list('table');
  assert.equal([table?.flags, table?.owner], [['owner'], owner.portId]);
  const error = await refusal(socket.commit(add({ ...chainC, name: 'd' })));
  assert.equal([error.code, error.attribute], ['EPERM', 'NFTA_CHAIN_TABLE']);
  execFileSync('nft', ['flush', 'ruleset']);
  assert.is((await socket.list('table')).length, 1);
  await owner.close();
  assert.equal(await socket.list('table'), []);
});

test('an owner table outlives neither a killed process nor a batch under way when its socket is closed', async () => {
  const body = `
    await socket.commit([{ verb: 'add', object: { kind: 'table', family: 'inet', name: 'x', flags: ['owner'] } }]);
    console.log('there'); setInterval(() => {}, 1000);`;
  const [file = '', ...args] = program(body);
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  assert.is((await socket.list('table')).length, 1);
  child.kill('SIGKILL');
  await once(child, 'close');
  assert.equal(await socket.list('table'), []);

  const closing = new NftablesSocket();
  const commit = closing.commit(add({ ...tableX, flags: ['owner'] }));
  await Promise.all([commit, closing.close()]);
  assert.equal(await socket.list('table'), []);
});

test('without CAP_NET_ADMIN: EPERM', () => {
  const body = `
    const commit = await socket.commit([]).catch((error) => error.code);
    const list = await socket.list('table').catch((error) => error.code);
    console.log(commit, list);`;
  const drop = ['--bounding-set', '-net_admin', '--inh-caps', '-net_admin'];
  assert.is(execFileSync('setpriv', [...drop, ...program(body)], { encoding: 'utf8' }).trim(), 'EPERM EPERM');
});

// ---- size -----------------------------------------------------------------------------------------------------------------------

const many = 10_000;
const prefixes = Array.from({ length: many }, (_, i) =>
  nft.range(nft.be32(0x0a000000 + 2 * i * 256), nft.be32(0x0a000000 + (2 * i + 1) * 256)),
);
const manyElements: NftElement[] = [nft.nullElement(4), ...prefixes.flat()];
const prefixSet = () =>
  new nft.Table('x').set(
    's',
    { keyType: 7, keyLength: 4, flags: ['interval'] },
    { keyByteorder: 'network' },
    manyElements,
  );

test(`${many} prefixes in one batch`, async () => {
  await socket.commit(prefixSet().operations);
  const [found] = await socket.list('elements', { family: 'inet', table: 'x', set: 's' });
  assert.equal(found?.elements, manyElements);
  await socket.commit([{ verb: 'delete', object: prefixSet().elements('s', manyElements.slice(1)) }]);
  assert.equal((await socket.list('elements', { family: 'inet', table: 'x', set: 's' }))[0]?.elements, [
    nft.nullElement(4),
  ]);
});

test('a batch too large for an unprivileged socket: EMSGSIZE, with the reason', () => {
  const body = `
    const userdata = new Uint8Array(256);
    const elements = Array.from({ length: 40000 }, (_, i) => ({ key: Uint8Array.of(10, i >> 16, i >> 8, i), userdata }));
    const object = { kind: 'elements', family: 'inet', table: 'x', set: 's', elements };
    const error = await socket.commit([{ verb: 'add', object }]).catch((error) => error);
    console.log(error.code, error.extack);`;
  const [file = '', ...args] = program(body);
  const out = execFileSync('unshare', ['--user', '--map-root-user', '--net', file, ...args], { encoding: 'utf8' });
  assert.match(out, /^EMSGSIZE \d+ bytes are more than the socket's send buffer holds \(sysctl net\.core\.wmem_max\)/);
});

test('5000 rules are listed to the last, also while others change the rule set', async () => {
  const rules = Array.from({ length: 5000 }, (_, i) => inC(nft.meta('mark'), nft.cmp('eq', nft.host32(i))));
  await socket.commit(add(tableX, chainC, ...rules));
  const list = () => socket.list('rule', { family: 'inet', table: 'x', chain: 'c' });
  assert.equal(
    (await list()).map(({ expressions }) => expressions),
    rules.map(({ expressions }) => expressions),
  );
  const changer = spawn('sh', ['-c', 'while :; do nft add table ip t; nft delete table ip t; done'], {
    detached: true,
  });
  try {
    for (let i = 0; i < 20; ++i) {
      const found = await list().catch((error: NetlinkError) => error);
      if (found instanceof Error) assert.is(found.code, 'EINTR');
      else assert.is(found.length, rules.length);
    }
  } finally {
    if (changer.pid) process.kill(-changer.pid, 'SIGKILL');
    await once(changer, 'close');
  }
});

// ---- arguments --------------------------------------------------------------------------------------------------------------------

test('arguments are checked before the kernel sees them', async () => {
  const wrong = (...operations: object[]) => refusal(socket.commit(operations as NftOperation[]));
  assert.match((await wrong({ verb: 'replace', object: tableX })).message, /operations\[0\]\.verb/);
  assert.match((await wrong({ verb: 'insert', object: chainC })).message, /operations\[0\]\.object\.kind/);
  assert.match((await wrong({ verb: 'add', object: { ...tableX, kind: 'desk' } })).message, /object\.kind/);
  assert.match(
    (await wrong({ verb: 'add', object: inC({ kind: 'cmp', op: 'eq', sreg: 1 } as never) })).message,
    /expressions\[0\]\.data/,
  );
  assert.match((await wrong({ verb: 'add', object: { ...chainC, hook: 'prerooting' } })).message, /prerooting/);
  assert.instance(await wrong({ verb: 'add', object: { ...chainC, priority: 2 ** 31 } }), RangeError);
  assert.instance(await wrong({ verb: 'add', object: { ...tableX, comment: 'x' } }), TypeError);
  assert.match((await refusal(socket.list('elements', { table: 'x' }))).message, /filter\.family/);
});

test('intervals are elements without an object for each', async () => {
  const set: NftSet = {
    kind: 'set',
    family: 'inet',
    table: 'x',
    name: 's',
    flags: ['interval'],
    keyType: 13,
    keyLength: 2,
  };
  const of = { kind: 'elements', family: 'inet', table: 'x', set: 's' } as const;
  const intervals = { keyLength: 2, keys: new Uint8Array([0, 80, 0, 81, 1, 187, 1, 188]) };
  await socket.commit(add(tableX, set, { ...of, elements: [], intervals }));
  assert.match(listed(), 'elements = { 80, 443 }');
  const [found] = await socket.list('elements', { family: 'inet', table: 'x', set: 's' });
  assert.equal(found?.elements, [
    { key: new Uint8Array([0, 80]) },
    { key: new Uint8Array([0, 81]), flags: ['intervalEnd'] },
    { key: new Uint8Array([1, 187]) },
    { key: new Uint8Array([1, 188]), flags: ['intervalEnd'] },
  ]);
  const half = { keyLength: 2, keys: new Uint8Array(6) };
  const { message } = await refusal(socket.commit(add({ ...of, elements: [], intervals: half })));
  assert.match(message, /intervals\.keys\.length must be a multiple of 4/);
});

test.run();
