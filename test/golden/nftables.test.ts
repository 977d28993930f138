/** Every kind of set, expression and operation: our batch is what `nft` sends for the same text. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';
import type { NftKey, NftObject, NftOperation } from '../../src/netlink/types.js';
import { encodeComment } from '../../src/netlink/userdata.js';
import * as nft from '../helpers/nft.js';
import { difference, normalised, read, split } from './fixture.js';

const test = suite('golden nf_tables');
const NLM_F_ACK = 4;
const { accept, bytes, cmp, drop, host32, ifname, ip4, l4proto, meta, nfproto, TYPE } = nft;

/** Compares the messages one by one, so that a failure names the first wrong one. */
function same(operations: readonly NftOperation[], theirs: readonly Buffer[] | undefined): void {
  assert.ok(theirs);
  const ours = split(native.encodeBatch(operations));
  for (const [i, message] of ours.entries())
    if (!message.equals(theirs[i] ?? Buffer.alloc(0)))
      assert.unreachable(`message ${i}\n${difference(message, theirs[i] ?? Buffer.alloc(0))}`);
  assert.is(ours.length, theirs.length);
}

function sets(): nft.Table {
  const table = new nft.Table('sets', { userdata: encodeComment('every kind of set') });
  const ports = { keyType: TYPE.inet_service, keyLength: 2, flags: ['interval'] } as const;
  const merged = { keyByteorder: 'network', autoMerge: true } as const;
  const network = { keyByteorder: 'network' } as const;
  const interval4 = { keyType: TYPE.ipv4_addr, keyLength: 4, flags: ['interval'] } as const;
  const concatenation = { keyByteorder: 'none', keyExpression: { kind: 'concatenation' } } as const;
  return table
    .set('empty_ports', ports, merged)
    .set('ports', ports, merged, nft.portRanges([80, 80], [8000, 8999]))
    .set('all_ports', ports, merged, nft.portRanges([1, 65535]))
    .set('from_zero', ports, merged, nft.portRanges([0, 10]))
    .set('prefixes4', interval4, network, [
      nft.nullElement(4),
      ...nft.range(ip4('1.2.3.4'), ip4('1.2.3.5')),
      ...nft.range(ip4('10.0.0.0'), ip4('11.0.0.0')),
      ...nft.range(ip4('240.0.0.0'), undefined),
    ])
    .set('all4', interval4, network, nft.range(ip4('0.0.0.0'), undefined))
    .set('prefixes6', { keyType: TYPE.ipv6_addr, keyLength: 16, flags: ['interval'] }, network, [
      nft.nullElement(16),
      ...nft.range(bytes('00000000000000000000000000000001'), bytes('00000000000000000000000000000002')),
      ...nft.range(bytes('20010db8000000000000000000000000'), bytes('20010db9000000000000000000000000')),
      ...nft.range(bytes('fc000000000000000000000000000000'), bytes('fe000000000000000000000000000000')),
      ...nft.range(bytes('ff000000000000000000000000000000'), undefined),
    ])
    .set('prefixes4_timeout', { ...interval4, flags: ['interval', 'timeout'] }, network, [
      nft.nullElement(4),
      { key: ip4('10.0.0.0'), timeoutMs: 5000n },
      { key: ip4('11.0.0.0'), flags: ['intervalEnd'] },
    ])
    .set('names', { keyType: TYPE.ifname, keyLength: 16 }, { keyByteorder: 'host' }, [
      { key: ifname('eth0') },
      { key: ifname('eth1') },
    ])
    .set(
      'addresses',
      {
        keyType: TYPE.ipv4_addr,
        keyLength: 4,
        flags: ['timeout'],
        timeoutMs: 10_000n,
        gcIntervalMs: 3000,
        policy: 'memory',
      },
      { keyByteorder: 'network', comment: 'all options' },
      [{ key: ip4('1.2.3.4'), timeoutMs: 5000n }, { key: ip4('2.3.4.5') }],
    )
    .set(
      'concatenated',
      {
        keyType: nft.concatenated(TYPE.ipv4_addr, TYPE.inet_service),
        keyLength: 8,
        flags: ['interval', 'concat'],
        concatenation: [4, 2],
      },
      concatenation,
      [{ key: bytes('0a00000000500000'), keyEnd: bytes('0affffff005a0000') }],
    )
    .set(
      'flows',
      {
        keyType: nft.concatenated(TYPE.ipv4_addr, TYPE.inet_service, TYPE.ipv4_addr, TYPE.inet_service),
        keyLength: 16,
        flags: ['timeout', 'eval'],
        size: 65536,
        timeoutMs: 60_000n,
      },
      concatenation,
      [{ key: bytes('010203040005000006070809000a0000') }],
    )
    .set('users', { keyType: TYPE.uid, keyLength: 4 }, { keyByteorder: 'host' }, [
      { key: host32(0) },
      { key: host32(1000) },
    ]);
}

function expressions(): nft.Table {
  const table = new nft.Table('expressions')
    .chain('filter', { type: 'filter', hook: 'prerouting', priority: -150, policy: 'accept' })
    .chain('route', { type: 'route', hook: 'output', priority: -150, policy: 'drop' })
    .chain('nat', { type: 'nat', hook: 'postrouting', priority: 100, policy: 'accept' })
    .chain('redirected', { type: 'nat', hook: 'prerouting', priority: -100, policy: 'accept' })
    .set('names', { keyType: TYPE.ifname, keyLength: 16 }, { keyByteorder: 'host' }, [
      { key: ifname('eth0') },
      { key: ifname('eth1') },
    ])
    .set(
      'ports',
      { keyType: TYPE.inet_service, keyLength: 2, flags: ['interval'] },
      { keyByteorder: 'network', autoMerge: true },
    )
    .set(
      'sources',
      { keyType: TYPE.ipv4_addr, keyLength: 4, flags: ['timeout', 'eval'], size: 100, timeoutMs: 60_000n },
      { keyByteorder: 'network' },
    );
  const saddr = [...nfproto(4), nft.payload('network', 12, 4)];
  table.rule('filter', meta('iifname'), table.in('names'), accept);
  const names = table.anonymous(
    { keyType: TYPE.ifname, keyLength: 16 },
    { keyByteorder: 'host', keyExpression: { kind: 'meta', key: 6 } },
    [ifname('eth0'), ifname('eth1')],
  );
  table
    .rule('filter', meta('iifname'), names, accept)
    .rule('filter', meta('iifname'), cmp('eq', ifname('eth0')), accept)
    .rule('filter', meta('iifname'), cmp('eq', Uint8Array.from(Buffer.from('eth'))), drop);
  const commented = table.ruleObject(
    'filter',
    l4proto('tcp'),
    nft.dport,
    { ...table.in('ports'), invert: true } as ReturnType<typeof nft.lookup>,
    accept,
  );
  table.operations.push({ verb: 'add', object: { ...commented, userdata: encodeComment('a comment') } });
  return table
    .rule(
      'filter',
      nfproto(4),
      l4proto('tcp'),
      { kind: 'immediate', dreg: 1, data: ip4('127.0.0.1') },
      { kind: 'immediate', dreg: 2, data: nft.be16(50080) },
      { kind: 'tproxy', family: 'ip', regAddr: 1, regPort: 2 },
    )
    .rule(
      'filter',
      l4proto('tcp'),
      { kind: 'immediate', dreg: 1, data: bytes('20010db8000000000000000000000001') },
      { kind: 'immediate', dreg: 2, data: nft.be16(50080) },
      { kind: 'tproxy', family: 'ip6', regAddr: 1, regPort: 2 },
    )
    .rule(
      'filter',
      { kind: 'ct', key: 'direction', dreg: 1 },
      cmp('eq', Uint8Array.of(0)),
      l4proto('udp'),
      nft.dport,
      cmp('eq', nft.be16(53)),
      { kind: 'counter', packets: 3n, bytes: 4n },
    )
    .rule('filter', { kind: 'ct', key: 'mark', dreg: 1 }, cmp('eq', host32(5)), accept)
    .rule(
      'filter',
      meta('skuid'),
      { kind: 'byteorder', op: 'hton', sreg: 1, dreg: 1, length: 4, size: 4 },
      cmp('gte', nft.be32(1000)),
      cmp('lte', nft.be32(2000)),
      accept,
    )
    .rule(
      'filter',
      saddr,
      { kind: 'dynset', op: 'add', set: 'sources', setId: table.id('sources'), sregKey: 1, timeoutMs: 10_000n },
      accept,
    )
    .rule('filter', saddr, { kind: 'dynset', op: 'delete', set: 'sources', setId: table.id('sources'), sregKey: 1 })
    .rule(
      'filter',
      l4proto('tcp'),
      nft.dport,
      cmp('gte', nft.be16(80)),
      cmp('lte', nft.be16(90)),
      meta('cgroup'),
      cmp('eq', host32(5)),
      accept,
    )
    .rule(
      'filter',
      meta('oif'),
      cmp('eq', host32(1)),
      { kind: 'immediate', dreg: 1, data: host32(5) },
      { kind: 'meta', key: 'priority', sreg: 1 },
    )
    .rule(
      'filter',
      { kind: 'fib', result: 'oif', flags: ['saddr', 'iif', 'present'], dreg: 1 },
      cmp('eq', host32(0)),
      drop,
    )
    .rule('filter', { kind: 'verdict', verdict: 'continue' })
    .rule(
      'redirected',
      l4proto('tcp'),
      nft.dport,
      cmp('eq', nft.be16(80)),
      { kind: 'immediate', dreg: 1, data: nft.be16(50080) },
      { kind: 'redir', regProtoMin: 1, flags: ['protoSpecified'] },
    )
    .rule(
      'redirected',
      l4proto('tcp'),
      { kind: 'immediate', dreg: 1, data: nft.be16(1000) },
      { kind: 'immediate', dreg: 2, data: nft.be16(2000) },
      { kind: 'redir', regProtoMin: 1, regProtoMax: 2, flags: ['protoSpecified', 'persistent'] },
    );
}

const wholes = { sets: sets(), expressions: expressions() };
for (const [name, table] of Object.entries(wholes)) {
  const theirs = read(name).get(`nft -f test/golden/nft/${name}.nft`);
  test(`${name}: encodes as nft does`, () => same(table.operations, theirs));
  test(`${name}: decodes what nft sends`, () => {
    for (const [i, operation] of table.operations.entries())
      assert.equal(native.decodeNftables(theirs?.[i + 1] ?? Buffer.alloc(0)), operation);
  });
}

const inX = { family: 'inet', table: 'x' } as const;
const table = { kind: 'table', family: 'inet', name: 'x' } as const;
const chain = { kind: 'chain', ...inX, name: 'c' } as const;
const rule = { kind: 'rule', ...inX, chain: 'c', expressions: [accept] } as const;
const set = { kind: 'set', ...inX, name: 's', keyType: TYPE.inet_service, keyLength: 2, flags: ['interval'] } as const;
const elements = {
  kind: 'elements',
  ...inX,
  set: 's',
  elements: nft.portRanges([80, 80], [90, 100]).slice(1),
} as const;

const counter = { kind: 'counter', ...inX, name: 'hits' } as const;

const operations: Record<string, readonly NftOperation[]> = {
  "nft 'add table inet y { flags dormant; }'": [{ verb: 'add', object: { ...table, name: 'y', flags: ['dormant'] } }],
  "nft 'add counter inet x hits { packets 3 bytes 4 ; }'": [
    { verb: 'add', object: { ...counter, packets: 3n, bytes: 4n } },
  ],
  'nft create counter inet x hits': [{ verb: 'create', object: counter }],
  'nft add rule inet x c counter name web': [
    { verb: 'add', object: { ...rule, expressions: [{ kind: 'objref', type: 'counter', name: 'web' }] } },
  ],
  'nft create table inet y': [{ verb: 'create', object: { ...table, name: 'y' } }],
  'nft create chain inet x d': [{ verb: 'create', object: { ...chain, name: 'd' } }],
  'nft insert rule inet x c accept': [{ verb: 'insert', object: rule }],
  'nft add rule inet x c position 2 accept': [{ verb: 'add', object: { ...rule, position: 2n } }],
  'nft delete rule inet x c handle 2': [{ verb: 'delete', object: { ...rule, handle: 2n } }],
  'nft flush chain inet x c': [{ verb: 'flush', object: chain }],
  'nft flush table inet x': [{ verb: 'flush', object: table }],
  'nft flush set inet x s': [{ verb: 'flush', object: set }],
  "nft 'delete element inet x s { 80, 90-100 }'": [{ verb: 'delete', object: elements }],
  'nft delete set inet x s': [{ verb: 'delete', object: set }],
  "nft 'flush chain inet x c; delete chain inet x c'": [
    { verb: 'flush', object: chain },
    { verb: 'delete', object: chain },
  ],
  'nft delete table inet x': [{ verb: 'delete', object: table }],
};
for (const [command, messages] of read('operations'))
  test(command, () => {
    assert.ok(operations[command]);
    same(operations[command] ?? [], messages);
  });

const intervalEnd = (key: Uint8Array) => ({ key, flags: ['intervalEnd'] }) as const;
const of = (name: string, ...keys: Extract<NftKey, { kind: 'elements' }>['elements']): NftKey => ({
  ...{ kind: 'elements', ...inX },
  set: name,
  elements: keys,
});
const gets: Record<string, readonly NftKey[]> = {
  'nft list table inet x': [table],
  'nft list chain inet x c': [table, chain],
  'nft list set inet x hosts': [table, { kind: 'set', ...inX, name: 'hosts' }],
  "nft 'get element inet x hosts { 10.0.0.1, 10.0.0.2 }'": [
    of('hosts', { key: ip4('10.0.0.1') }, { key: ip4('10.0.0.2') }),
  ],
  "nft 'get element inet x ports { 80, 95 }'": [of('ports', { key: nft.be16(80) }, { key: nft.be16(95) })],
  "nft 'get element inet x ports { 90-100 }'": [of('ports', { key: nft.be16(90) }, intervalEnd(nft.be16(101)))],
  "nft 'get element inet x both { 10.0.0.7 . 85 }'": [of('both', { key: bytes('0a00000700550000') })],
  "nft 'get element inet x both { 10.0.0.0/24 . 80-90 }'": [
    of('both', { key: bytes('0a00000000500000'), keyEnd: bytes('0a0000ff005a0000') }),
  ],
};
/** nft names the set before its table here, the kernel takes them in any order. Behind an nfgenmsg. */
function inOrder(message: Buffer): Buffer {
  const attributes: Buffer[] = [];
  for (let at = 20; at < message.length; at += (attributes.at(-1) as Buffer).length)
    attributes.push(message.subarray(at, at + ((message.readUInt16LE(at) + 3) & ~3)));
  attributes.sort((one, other) => one.readUInt16LE(2) - other.readUInt16LE(2));
  return Buffer.concat([message.subarray(0, 20), ...attributes]);
}
for (const [command, messages] of read('gets'))
  test(command, () => {
    const ours = (gets[command] ?? []).map((key) => native.encodeGet(key));
    assert.is(ours.length, messages.length);
    for (const [index, theirs] of messages.entries()) {
      // nft has each answer acknowledged.
      const [mine, wanted] = [ours[index] ?? Buffer.alloc(0), inOrder(normalised(theirs))];
      assert.is(wanted.readUInt16LE(6), mine.readUInt16LE(6) | NLM_F_ACK);
      wanted.writeUInt16LE(mine.readUInt16LE(6), 6);
      if (!mine.equals(wanted)) assert.unreachable(difference(mine, wanted));
    }
  });

// ---- decode(encode(x)) = x where nft makes no such thing ------------------------------------------------------------------

function roundTrip(object: NftObject, verb: 'add' | 'create' = 'add'): void {
  const [, message] = split(native.encodeBatch([{ verb, object }]));
  assert.equal(native.decodeNftables(message ?? Buffer.alloc(0)), { verb, object });
}

test('round trip: what this nft has no words for', () => {
  roundTrip({ ...table, flags: ['owner', 'persist'] }, 'create');
  roundTrip({ ...table, flags: ['dormant', 0x40] });
  roundTrip({ kind: 'elements', ...inX, set: 's', elements: [{ key: new Uint8Array(), flags: ['catchall'] }] });
  roundTrip({
    ...rule,
    expressions: [
      { kind: 'socket', key: 'cgroupv2', level: 2, dreg: 1 },
      { kind: 'meta', key: 99, dreg: 1 },
      { kind: 'ct', key: 'zone', direction: 'reply', dreg: 1 },
      { kind: 'lookup', set: 'm', sreg: 1, dreg: 0 },
      { kind: 'verdict', verdict: 0x00050003 }, // queue 5
      { kind: 'unknown', name: 'limit', data: bytes('0c0001000000000000000005') },
    ],
  });
});

test('the generation goes into the beginning of the batch', () => {
  const [begin] = split(native.encodeBatch([], { generation: 0x01020304 }));
  assert.is(begin?.toString('hex'), `1c00000010000100${'00'.repeat(8)}0000000a0800010001020304`);
});

test('more elements than an attribute holds become several messages', () => {
  const many = Array.from({ length: 10_000 }, (_, i) => ({ key: nft.be32(0x0a000000 + i) }));
  const messages = split(native.encodeBatch([{ verb: 'add', object: { ...elements, elements: many } }]));
  const parts = messages.slice(1, -1).map((message) => native.decodeNftables(message).object);
  assert.ok(parts.length > 1);
  assert.ok(messages.every((message) => message.length < 0x10000 + 100));
  assert.equal(
    parts.flatMap((part) => (part.kind === 'elements' ? part.elements : [])),
    many,
  );
});

test('what is too large for an attribute is an error', () => {
  const key = new Uint8Array(70_000);
  assert.throws(
    () => native.encodeBatch([{ verb: 'add', object: { ...elements, elements: [{ key }] } }]),
    (error: unknown) => (error as { code: string }).code === 'EMSGSIZE',
  );
});

test.run();
