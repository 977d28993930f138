/**
 * Every expression and every attribute, both ways: random objects that are valid are given to the kernel and must be listed
 * as they were given. The seed is in the failure's message; `SEED=...` runs the same again.
 */
import { execFileSync } from 'node:child_process';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import * as iptables from '../../src/intercept/iptables-words.js';
import { NftablesSocket } from '../../src/netlink/nftables.js';
import { RouteSocket } from '../../src/netlink/route.js';
import { sequence } from '../../src/netlink/sequence.js';
import type {
  Address,
  Link,
  LinkInfo,
  NewLink,
  NftElement,
  NftExpression,
  NftObject,
  NftRule,
  NftSet,
  Route,
  Rule,
} from '../../src/netlink/types.js';
import { encodeComment } from '../../src/netlink/userdata.js';
import { enterNamespaces, oneUser } from '../helpers/namespaces.js';

enterNamespaces();

const seed = Number(process.env['SEED'] ?? Math.floor(Math.random() * 2 ** 31));
let state = seed;
/** From 0 to below `limit`. */
function below(limit: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * limit);
}
const from = (least: number, most: number) => least + below(most - least + 1);
const oneOf = <T>(...list: readonly T[]): T => list[below(list.length)] as T;
const sometimes = <T extends object>(part: T): T | object => (below(2) ? part : {});
const bytes = (length: number) => Uint8Array.from({ length }, () => below(256));
const u32 = () => from(0, 0xffffffff);
const u64 = () => (BigInt(u32()) << 31n) | BigInt(u32() >>> 1);

const test = suite('round trip');
const nftables = new NftablesSocket();
const route = new RouteSocket();
test.before(() => {
  execFileSync('sh', [
    '-euc',
    // Without addresses that the kernel gives by itself, a second later.
    `ip link add eth0 type veth peer name eth1; for name in eth0 eth1; do ip link set $name addrgenmode none; ip link set $name up; done
     ip address add 10.1.0.1/24 dev eth0; ip -6 address add 2001:db8:1::1/64 dev eth0 nodad`,
  ]);
});
test.after(async () => {
  await Promise.all([nftables.close(), route.close()]);
});

// ---- expressions ----------------------------------------------------------------------------------------------------------

/** Of 16 bytes: 1 to 4; of 4 bytes: those that the kernel does not tell by the number of one of 16. */
const wide = () => from(1, 4);
const narrow = () => oneOf(9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23);
const set = { name: 's', dynamic: 'd' };

type Kind = NftExpression['kind'];
/** All but iptables' own, which come below. */
const expressions: { readonly [K in Exclude<Kind, 'unknown' | 'match' | 'target'>]: () => NftExpression } = {
  meta: () =>
    below(3) === 0
      ? { kind: 'meta', key: oneOf('mark', 'priority'), sreg: narrow() }
      : below(4) === 0
        ? { kind: 'meta', key: oneOf('iifname', 'oifname'), dreg: wide() }
        : {
            kind: 'meta',
            key: oneOf(
              ...([
                'len',
                'protocol',
                'priority',
                'mark',
                'iif',
                'oif',
                'iiftype',
                'oiftype',
                'skuid',
                'skgid',
              ] as const),
              ...(['nfproto', 'l4proto', 'cpu', 'iifgroup', 'oifgroup', 'cgroup'] as const),
            ),
            dreg: narrow(),
          },
  payload: () => ({
    kind: 'payload',
    base: oneOf('link', 'network', 'transport'),
    offset: from(0, 200),
    length: from(1, 16),
    dreg: wide(),
  }),
  cmp: () => ({
    kind: 'cmp',
    op: oneOf('eq', 'neq', 'lt', 'lte', 'gt', 'gte'),
    sreg: wide(),
    data: bytes(from(1, 16)),
  }),
  bitwise: () => {
    const length = from(1, 16);
    return { kind: 'bitwise', sreg: wide(), dreg: wide(), length, mask: bytes(length), xor: bytes(length) };
  },
  immediate: () => ({ kind: 'immediate', dreg: wide(), data: bytes(from(1, 16)) }),
  verdict: () =>
    below(2)
      ? { kind: 'verdict', verdict: oneOf('accept', 'drop', 'continue', 'return') }
      : { kind: 'verdict', verdict: oneOf('jump', 'goto'), chain: 'other' },
  lookup: () => ({ kind: 'lookup', set: set.name, sreg: wide(), ...sometimes({ invert: true }) }),
  dynset: () => ({
    kind: 'dynset',
    set: set.dynamic,
    op: oneOf('add', 'update', 'delete'),
    sregKey: wide(),
    ...sometimes({ timeoutMs: BigInt(from(1, 1_000_000)) * 1000n }),
    ...sometimes({ invert: true }),
  }),
  fib: () => {
    const flags = [oneOf('saddr', 'daddr'), ...(below(2) ? (['mark'] as const) : [])] as const;
    return below(2)
      ? {
          kind: 'fib',
          result: 'type',
          flags: [...flags, ...oneOf<readonly ('iif' | 'oif')[]>([], ['iif'], ['oif'])],
          dreg: narrow(),
        }
      : {
          kind: 'fib',
          result: oneOf('oif', 'oifname'),
          flags: [...flags, ...oneOf<readonly 'iif'[]>([], ['iif'])],
          dreg: wide(),
        };
  },
  socket: () =>
    below(4) === 0
      ? { kind: 'socket', key: 'cgroupv2', level: from(1, 8), dreg: wide() }
      : { kind: 'socket', key: oneOf('transparent', 'mark', 'wildcard'), dreg: narrow() },
  tproxy: () =>
    oneOf<NftExpression>(
      { kind: 'tproxy', family: 'unspec', regPort: narrow() },
      { kind: 'tproxy', family: oneOf('ip', 'ip6'), regAddr: wide(), ...sometimes({ regPort: narrow() }) },
    ),
  redir: () => {
    const flags = (['protoRandom', 'persistent', 'protoRandomFully'] as const).filter(() => below(2));
    // With one port the kernel tells it as the first and the last, and by its flag.
    const ports = { regProtoMin: narrow(), regProtoMax: narrow(), flags: ['protoSpecified' as const, ...flags] };
    return { kind: 'redir', ...(below(2) ? ports : flags.length > 0 ? { flags } : {}) };
  },
  ct: () =>
    oneOf<NftExpression>(
      { kind: 'ct', key: 'mark', sreg: narrow() },
      { kind: 'ct', key: 'zone', ...sometimes({ direction: oneOf('original', 'reply') }), dreg: narrow() },
      {
        kind: 'ct',
        key: oneOf('state', 'direction', 'status', 'mark', 'expiration', 'l3protocol', 'protocol'),
        dreg: narrow(),
      },
    ),
  objref: () => ({ kind: 'objref', type: 'counter', name: 'hits' }),
  counter: () => ({ kind: 'counter', packets: u64(), bytes: u64() }),
  byteorder: () => {
    const size = oneOf(2, 4, 8);
    return {
      kind: 'byteorder',
      op: oneOf('ntoh', 'hton'),
      sreg: wide(),
      dreg: wide(),
      length: size * from(1, 16 / size),
      size,
    };
  },
};
/** The kernel lets nobody read a register that nothing was put in. */
const filled: readonly NftExpression[] = [1, 2, 3, 4].map((dreg) => ({ kind: 'immediate', dreg, data: bytes(16) }));

const family = 'inet';
const table = 'x';
const inTable = { family, table } as const;

test('expressions', async () => {
  const rules = Object.values(expressions).flatMap((make) =>
    Array.from({ length: 25 }, (): NftRule => {
      const userdata = below(2) ? { userdata: encodeComment(`rule ${u32()}`) } : {};
      return { kind: 'rule', ...inTable, chain: 'c', expressions: [...filled, make()], ...userdata };
    }),
  );
  const key = { keyType: 0, keyLength: 16 };
  const objects: NftObject[] = [
    { kind: 'table', family, name: table },
    { kind: 'chain', ...inTable, name: 'other' },
    { kind: 'chain', ...inTable, name: 'c' },
    { kind: 'counter', ...inTable, name: 'hits', packets: u64(), bytes: u64() },
    { kind: 'set', ...inTable, name: set.name, ...key },
    { kind: 'set', ...inTable, name: set.dynamic, ...key, flags: ['timeout', 'eval'], size: 100 },
    ...rules,
  ];
  await nftables.commit(objects.map((object) => ({ verb: 'add', object })));
  const found = await nftables.list('rule', inTable);
  assert.is(found.length, rules.length);
  for (const [index, { handle: _, ...rule }] of found.entries()) assert.equal(rule, rules[index], `SEED=${seed}`);
  await nftables.commit([{ verb: 'delete', object: { kind: 'table', family, name: table } }]);
});

const port = () => from(1, 0xffff);
const mark = () => {
  const mask = from(1, 0xffffffff);
  return { value: (u32() & mask) >>> 0, mask };
};
const extensions: readonly ((of: 'ipv4' | 'ipv6') => iptables.Word)[] = [
  () =>
    iptables.destinationPorts(
      Array.from({ length: from(1, 6) }, () => {
        const start = port();
        return { start: BigInt(start), end: BigInt(from(start, 0xffff)) };
      }),
    )[0] as iptables.Word,
  () => iptables.connmark(mark()),
  () => iptables.ctDirection(oneOf('ORIGINAL', 'REPLY')),
  (of) => iptables.destinationType(oneOf('LOCAL', of === 'ipv4' ? 'BROADCAST' : 'MULTICAST')),
  () => iptables.socketTransparent({ restoreMark: below(2) === 1 }),
  () => iptables.owner({ name: 'root', id: 0 }), // without root there is no other user
  () => iptables.cgroup('/'),
  () => iptables.comment(`number ${u32()}`),
  () => iptables.setMark(mark()),
  () => iptables.setConnmark(mark()),
  (of) => iptables.tproxy(of, port(), mark(), address(of)),
];

test("iptables' matches and targets", async () => {
  for (const [family, of] of [
    ['ip', 'ipv4'],
    ['ip6', 'ipv6'],
  ] as const) {
    const inMangle = { family, table: 'mangle' } as const;
    const rules = extensions.flatMap((make) =>
      Array.from(
        { length: 25 },
        (): NftRule => ({
          ...{ kind: 'rule', ...inMangle, chain: 'c' },
          expressions: [...iptables.protocol('tcp').expressions, ...make(of).expressions],
          ...{ compatProtocol: 6, compatFlags: 0 },
        }),
      ),
    );
    const objects: NftObject[] = [
      { kind: 'table', family, name: 'mangle' },
      { kind: 'chain', ...inMangle, name: 'c' },
      ...rules,
    ];
    await nftables.commit(objects.map((object) => ({ verb: 'add', object })));
    const found = await nftables.list('rule', inMangle);
    assert.is(found.length, rules.length);
    for (const [index, { expressions: read }] of found.entries())
      assert.equal(read, rules[index]?.expressions, `SEED=${seed}`);
    await nftables.commit([{ verb: 'delete', object: { kind: 'table', family, name: 'mangle' } }]);
  }
});

test('tables, chains, sets and elements', async () => {
  const objects: NftObject[] = [
    { kind: 'table', family, name: table, ...sometimes({ userdata: encodeComment('of a table') }) },
  ];
  for (let n = 0; n < 20; n++) {
    const base = oneOf(
      { type: 'filter', hook: oneOf('prerouting', 'input', 'forward', 'output', 'postrouting') } as const,
      { type: 'route', hook: 'output' } as const,
      undefined,
    );
    const policy = oneOf('accept', 'drop');
    objects.push({
      kind: 'chain',
      ...inTable,
      name: `c${n}`,
      ...(base && { ...base, priority: from(-500, 500), policy }),
    });
  }
  const elements = new Map<string, readonly NftElement[]>();
  for (let n = 0; n < 20; n++) {
    const keyLength = oneOf(2, 4, 6, 16);
    const timeout = below(2) === 1;
    const interval = below(3) === 0;
    const made: NftSet = {
      kind: 'set',
      ...inTable,
      name: `s${n}`,
      ...((timeout || interval) && {
        flags: [...(interval ? (['interval'] as const) : []), ...(timeout ? (['timeout'] as const) : [])],
      }),
      keyType: u32(),
      keyLength,
      ...(timeout && sometimes({ timeoutMs: BigInt(from(1, 1000)) * 1000n, gcIntervalMs: from(1, 1000) * 1000 })),
      ...sometimes({ size: from(100, 1000) }),
      ...sometimes({ userdata: bytes(from(1, 200)) }),
    };
    // Ascending, as they are listed.
    const keys = new Map(
      Array.from({ length: 2 * from(1, 10) }, () => bytes(keyLength)).map((key) => [
        Buffer.from(key).toString('hex'),
        key,
      ]),
    );
    const sorted = [...keys.keys()].sort().map((hex) => keys.get(hex) as Uint8Array);
    if (sorted.length % 2) sorted.pop();
    elements.set(
      made.name,
      sorted.map((key, index) => ({
        key,
        ...(interval && index % 2 === 1
          ? { flags: ['intervalEnd' as const] }
          : {
              ...(timeout && sometimes({ timeoutMs: BigInt(from(100, 1000)) * 1000n })),
              ...sometimes({ userdata: bytes(from(1, 200)) }),
            }),
      })),
    );
    objects.push(made, { kind: 'elements', ...inTable, set: made.name, elements: elements.get(made.name) ?? [] });
  }
  await nftables.commit(objects.map((object) => ({ verb: 'add', object })));
  for (const kind of ['table', 'chain', 'set'] as const)
    assert.equal(
      (await nftables.list(kind, inTable)).map(({ handle: _, ...object }) => object),
      objects.filter((object) => object.kind === kind),
      `SEED=${seed}`,
    );
  for (const [name, list] of elements) {
    const [found] = await nftables.list('elements', { ...inTable, set: name });
    // Which of them have the set's own timeout, and what is left of it, is the kernel's to say.
    const given = found?.elements.map(({ expiresMs: _, timeoutMs, ...element }, index) => ({
      ...element,
      ...(list[index]?.timeoutMs && { timeoutMs }),
    }));
    assert.equal(given, list, `SEED=${seed}`);
  }
  await nftables.commit([{ verb: 'delete', object: { kind: 'table', family, name: table } }]);
});

// ---- rtnetlink ------------------------------------------------------------------------------------------------------------

const address = (of: 'ipv4' | 'ipv6') =>
  of === 'ipv4' ? `10.1.0.${from(2, 254)}` : `2001:db8:1::${from(2, 0xffff).toString(16)}`;
const prefix = (of: 'ipv4' | 'ipv6') =>
  of === 'ipv4' ? `172.${from(16, 31)}.${from(0, 255)}.0/24` : `2001:db8:${from(2, 0xffff).toString(16)}::/48`;
const range = (most: number) => {
  const start = from(1, most);
  return { start, end: from(start, most) };
};

test('policy rules', async () => {
  const rules = (['ipv4', 'ipv6'] as const).flatMap((of) =>
    Array.from({ length: 150 }, (_, index): Rule => {
      const mask = from(1, 0xffffffff);
      return {
        family: of,
        priority: 1000 + index,
        ...oneOf<Pick<Rule, 'action' | 'table' | 'goto' | 'suppressPrefixLength'>>(
          { action: 'lookup', table: from(1, 2) === 1 ? from(1, 252) : from(256, 0xffffffff) },
          { action: 'lookup', table: 100, suppressPrefixLength: from(0, 32) },
          { action: 'goto', goto: 1000 + index + from(1, 500) },
          { action: oneOf('nop', 'blackhole', 'unreachable', 'prohibit') },
        ),
        ...sometimes({ invert: true }),
        ...sometimes({ fwmark: { value: (u32() & mask) >>> 0, mask } }),
        ...sometimes({ iif: oneOf('lo', 'eth0', 'none0') }),
        ...sometimes({ oif: oneOf('lo', 'eth0', 'none0') }),
        ...sometimes({ from: prefix(of) }),
        ...sometimes({ to: prefix(of) }),
        ...sometimes({ tos: 4 * from(1, 7) }),
        ...sometimes({ ipProtocol: oneOf(6, 17) }),
        // The kernel takes the last port in none.
        ...sometimes({ sourcePorts: range(65534) }),
        ...sometimes({ destinationPorts: range(65534) }),
        ...sometimes({ users: oneUser ? { start: 0, end: 0 } : range(0xfffffffe) }),
        protocol: from(1, 255),
      };
    }),
  );
  await route.commit(rules.map((rule) => ({ verb: 'add', kind: 'rule', rule })));
  const found = (await route.ruleList()).filter(({ priority = 0 }) => priority >= 1000 && priority < 2000);
  assert.is(found.length, rules.length);
  for (const [index, rule] of found.entries()) assert.equal(rule, rules[index], `SEED=${seed}`);
  await route.commit(rules.map((rule) => ({ verb: 'delete', kind: 'rule', rule })));
  assert.not.ok((await route.ruleList()).some(({ priority = 0 }) => priority >= 1000 && priority < 2000));
});

test('routes', async () => {
  const kinds = ['blackhole', 'unreachable', 'prohibit', 'throw'] as const;
  const routes = (['ipv4', 'ipv6'] as const).flatMap((of) =>
    Array.from({ length: 100 }, (_, index): Route => {
      const common = {
        family: of,
        destination: of === 'ipv4' ? `172.16.${index}.0/24` : `2001:db8:${(index + 2).toString(16)}::/48`,
        table: oneOf(100, 1000, 0xfffffffe),
        protocol: from(3, 255),
        metric: from(1, 0x7fffffff),
      };
      return oneOf<Route>(
        { ...common, type: 'unicast', dev: 'eth0', gateway: address(of), scope: 'universe' },
        { ...common, type: 'unicast', dev: 'eth0', scope: of === 'ipv4' ? 'link' : 'universe' },
        { ...common, type: 'local', dev: 'lo', scope: of === 'ipv4' ? 'host' : 'universe' },
        // IPv6 keeps these on lo.
        { ...common, type: oneOf(...kinds), scope: 'universe', ...(of === 'ipv6' && { dev: 'lo' }) },
        {
          ...common,
          type: 'unicast',
          dev: 'eth0',
          gateway: address(of),
          preferredSource: of === 'ipv4' ? '10.1.0.1' : '2001:db8:1::1',
          scope: 'universe',
        },
      );
    }),
  );
  await route.commit(routes.map((each) => ({ verb: 'add', kind: 'route', route: each })));
  const order = ({ family: of, table: number, destination }: Route) => `${of} ${number} ${destination}`;
  const sorted = (list: readonly Route[]) => [...list].sort((a, b) => (order(a) < order(b) ? -1 : 1));
  const tables = [100, 1000, 0xfffffffe];
  const found = (await Promise.all(sequence(() => tables.map((number) => route.routeList({ table: number }))))).flat();
  assert.is(found.length, routes.length);
  const wanted = sorted(routes);
  for (const [index, each] of sorted(found).entries()) assert.equal(each, wanted[index], `SEED=${seed}`);
  await route.commit(routes.map((each) => ({ verb: 'delete', kind: 'route', route: each })));
  assert.equal(await route.routeList({ table: 1000 }), []);
});

test('links', async () => {
  const { index: eth0 } = await route.linkGet('eth0');
  const seconds = (least: number, most: number) => 100 * from(least, most);
  const links = Array.from({ length: 60 }, (_, number): NewLink => {
    const linkInfo = oneOf<() => LinkInfo>(
      () => ({
        ...{ kind: 'bridge', forwardDelay: seconds(2, 30), helloTime: seconds(1, 10), maxAge: seconds(6, 40) },
        ...{ ageingTime: seconds(1, 1000), stpState: 0, priority: from(0, 0xffff), mcastSnooping: below(2) === 1 },
      }),
      () => ({ kind: 'macvlan', mode: oneOf('private', 'vepa', 'bridge', 'source') }),
      () => ({ kind: 'ifb' }),
      () => ({ kind: 'veth' }),
    )();
    const mac = bytes(6);
    mac[0] = ((mac[0] ?? 0) & 0xfc) | 2; // of one host, and made here
    return {
      name: `link${number}`,
      index: 1000 + number,
      ...(linkInfo.kind === 'macvlan' && { link: eth0 }),
      address: Buffer.from(mac)
        .toString('hex')
        .replaceAll(/..(?!$)/g, '$&:'),
      mtu: from(1280, 1500),
      linkInfo,
    };
  });
  for (const link of links) await route.linkAdd(link);
  const found = new Map((await route.linkList()).map((link) => [link.index, link]));
  for (const wanted of links) {
    const { flags: _, link, linkInfo, ...told } = found.get(wanted.index ?? 0) as Link;
    // What a veth or a bridge has besides is the kernel's to tell.
    const veth = wanted.linkInfo.kind === 'veth';
    const { vlanFiltering: _off, ...info } = { vlanFiltering: false, ...linkInfo };
    assert.equal({ ...told, ...(link && !veth && { link }), linkInfo: info }, wanted, `SEED=${seed}`);
    await route.linkDelete(wanted.name);
  }
});

test('addresses', async () => {
  const { index: linkIndex } = await route.linkGet('eth0');
  // But for what the kernel gives to links by itself, and checks for a while.
  const listed = async () => (await route.addressList()).filter(({ address }) => !address.startsWith('fe80::'));
  const before = await listed();
  const addresses = Array.from({ length: 100 }, (_, number): Address => {
    const common = { linkIndex, scope: oneOf('universe', 'site', 'link', 'host') } as const;
    const ipv4 = { ...common, family: 'ipv4', address: `172.20.${number}.${from(1, 254)}`, prefixLength: 24 } as const;
    return oneOf<Address>(
      { ...ipv4, ...sometimes({ broadcast: `172.20.${number}.255` }) },
      { ...ipv4, peer: `172.21.${number}.${from(1, 254)}`, prefixLength: 32 },
      {
        ...{
          ...common,
          family: 'ipv6',
          address: `2001:db8:${(number + 2).toString(16)}::7`,
          prefixLength: from(48, 128),
        },
        ...{ scope: 'universe', flags: ['nodad', ...oneOf<readonly 'noprefixroute'[]>([], ['noprefixroute'])] },
      },
    );
  });
  await route.commit(addresses.map((each) => ({ verb: 'add', kind: 'address', address: each })));
  const found = new Map((await route.addressList()).map((each) => [each.address, each]));
  for (const wanted of addresses) {
    const { flags = [], ...told } = found.get(wanted.address) as Address;
    const asked = flags.filter((each) => each !== 'permanent');
    assert.equal({ ...told, ...(asked.length > 0 && { flags: asked }) }, wanted, `SEED=${seed}`);
  }
  await route.commit(addresses.map((each) => ({ verb: 'delete', kind: 'address', address: each })));
  assert.equal(await listed(), before);
});

test.run();
