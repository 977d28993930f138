/** Rules, routes, links and addresses against the kernel, and against what `ip` says of them. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { NetlinkError, SocketError } from '../../src/errors.js';
import { RouteSocket } from '../../src/netlink/route.js';
import { sequence } from '../../src/netlink/sequence.js';
import type { LinkInfo, NewLink, Route, RouteChange, RouteQuery, Rule } from '../../src/netlink/types.js';
import { compiled } from '../helpers/compiled.js';
import { enterNamespaces } from '../helpers/namespaces.js';
import { refusal } from '../helpers/refusal.js';
import { until } from '../helpers/wait.js';

enterNamespaces();

const ip = (...args: string[]): string => execFileSync('ip', args, { encoding: 'utf8' }).trimEnd();
/** Many at once, one process. */
const batch = (lines: readonly string[]): void => {
  execFileSync('ip', ['-batch', '-'], { input: lines.join('\n') });
};
async function rejects(call: () => Promise<unknown>, message: RegExp): Promise<void> {
  assert.match(String(await call().catch((error: unknown) => error)), message);
}

const test = suite('kernel rtnetlink');
let socket: RouteSocket;

test.before(async () => {
  ip('link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth1');
  for (const name of ['eth0', 'eth1']) {
    ip('link', 'set', name, 'addrgenmode', 'none'); // else it has one more address a second later, and a route to it
    ip('link', 'set', name, 'up');
  }
  const multicast = () => ip('-6', 'route', 'show', 'table', 'local').match(/^multicast/gm) ?? [];
  await until(() => multicast().length === 2, 'both links are up');
  ip('address', 'add', '10.1.0.1/24', 'dev', 'eth0');
  ip('-6', 'address', 'add', '2001:db8:1::1/64', 'dev', 'eth0', 'nodad');
  socket = new RouteSocket();
});
test.after(() => socket.close());

// ---- rules: list, add, list, find field by field, delete, list equals start -----------------------------------------------

const fwmark = { value: 1, mask: 3 };
const rules: readonly (readonly [words: string, rule: Rule])[] = [
  [
    '98: from all fwmark 0x1/0x3 iif lo goto 101 [unresolved] proto 84',
    { family: 'ipv4', action: 'goto', goto: 101, priority: 98, fwmark, iif: 'lo', protocol: 84 },
  ],
  [
    '98: from all fwmark 0x1/0x3 iif lo goto 101 [unresolved] proto 84',
    { family: 'ipv6', action: 'goto', goto: 101, priority: 98, fwmark, iif: 'lo', protocol: 84 },
  ],
  [
    '100: from all fwmark 0x1/0x3 lookup 100 proto 84',
    { family: 'ipv4', action: 'lookup', table: 100, priority: 100, fwmark, protocol: 84 },
  ],
  ['101: from all fwmark 0x1/0x3 nop proto 84', { family: 'ipv6', action: 'nop', priority: 101, fwmark, protocol: 84 }],
  [
    '7: from 10.0.0.0/8 to 192.0.2.1 tos 0x10 iif lo oif eth0 lookup 1000',
    {
      family: 'ipv4',
      action: 'lookup',
      table: 1000,
      priority: 7,
      from: '10.0.0.0/8',
      to: '192.0.2.1/32',
      tos: 0x10,
      iif: 'lo',
      oif: 'eth0',
    },
  ],
  [
    '7: from 2001:db8::/32 to 2001:db8::1 lookup 1000',
    { family: 'ipv6', action: 'lookup', table: 1000, priority: 7, from: '2001:db8::/32', to: '2001:db8::1/128' },
  ],
  [
    '8: from all uidrange 0-0 ipproto tcp sport 1-10 dport 80 lookup main',
    {
      family: 'ipv4',
      action: 'lookup',
      table: 254,
      priority: 8,
      ipProtocol: 6,
      sourcePorts: { start: 1, end: 10 },
      destinationPorts: { start: 80, end: 80 },
      // Without root there is no other user.
      users: { start: 0, end: 0 },
    },
  ],
  [
    '9: not from all fwmark 0xca6c lookup 51820',
    {
      family: 'ipv4',
      action: 'lookup',
      table: 51820,
      priority: 9,
      invert: true,
      fwmark: { value: 0xca6c, mask: 0xffffffff },
    },
  ],
  [
    '10: from all lookup main suppress_prefixlength 0',
    { family: 'ipv4', action: 'lookup', table: 254, priority: 10, suppressPrefixLength: 0 },
  ],
  [
    '11: from all fwmark 0/0x3 blackhole',
    { family: 'ipv4', action: 'blackhole', priority: 11, fwmark: { value: 0, mask: 3 } },
  ],
  ['12: from all prohibit', { family: 'ipv6', action: 'prohibit', priority: 12 }],
  ['13: from all to 10.0.0.0/8 unreachable', { family: 'ipv4', action: 'unreachable', priority: 13, to: '10.0.0.0/8' }],
  ['14: from all lookup [l3mdev-table]', { family: 'ipv6', action: 'lookup', priority: 14, l3mdev: true }],
];
for (const [words, rule] of rules)
  test(`${rule.family} rule ${words}`, async () => {
    const before = await socket.ruleList();
    await socket.ruleAdd(rule);
    assert.equal(
      (await socket.ruleList(rule.family)).filter((each) => each.priority === rule.priority),
      [rule],
    );
    const shown = ip(rule.family === 'ipv4' ? '-4' : '-6', '-d', 'rule', 'show', 'pref', String(rule.priority));
    assert.is(
      shown
        .replaceAll(/\s+/g, ' ')
        .replace(/ proto unspec\s*/, '')
        .trim(),
      words,
    );
    await socket.ruleDelete(rule);
    assert.equal(await socket.ruleList(), before);
  });

test('a rule that is there: EEXIST; one that is not: ENOENT; another protocol is another rule', async () => {
  const rule: Rule = { family: 'ipv4', action: 'lookup', table: 100, priority: 50, protocol: 84 };
  await socket.ruleAdd(rule);
  const exists = await refusal(socket.ruleAdd(rule));
  assert.equal(
    [exists.code, exists.errno, exists.operation, exists.request],
    ['EEXIST', -17, 'add rule', 'RTM_NEWRULE'],
  );
  await socket.ruleAdd({ ...rule, protocol: 85 });
  assert.is((await refusal(socket.ruleDelete({ ...rule, protocol: 86 }))).code, 'ENOENT');
  socket.commitSync([{ verb: 'delete', kind: 'rule', rule }]);
  await socket.ruleDelete({ ...rule, protocol: 85 });
  assert.throws(
    () => socket.commitSync([{ verb: 'delete', kind: 'rule', rule }]),
    (error: NetlinkError) => error.code === 'ENOENT',
  );
});

test('the extended ack: message and attribute', async () => {
  const table = await refusal(
    socket.routeAdd({
      family: 'ipv4',
      type: 'unicast',
      destination: '10.9.0.0/16',
      table: 254,
      gateway: '203.0.113.1',
    }),
  );
  assert.equal([table.code, table.extack], ['ENETUNREACH', 'Nexthop has invalid gateway']);
  const ports = await refusal(
    socket.ruleAdd({ family: 'ipv4', action: 'lookup', table: 1, destinationPorts: { start: 0, end: 0 } }),
  );
  assert.equal([ports.code, ports.extack], ['EINVAL', 'Invalid dport range']);
  const name = await refusal(socket.ruleAdd({ family: 'ipv4', action: 'goto', goto: 5, priority: 5 }));
  assert.equal([name.code, name.extack], ['EINVAL', 'Backward goto not supported']);
});

// ---- routes -----------------------------------------------------------------------------------------------------------------

const routes: readonly (readonly [words: string, route: Route])[] = [
  [
    'local default dev lo proto 84 scope host',
    { family: 'ipv4', type: 'local', destination: 'default', dev: 'lo', table: 100, scope: 'host', protocol: 84 },
  ],
  [
    'local default dev lo proto 84 scope global metric 1024 pref medium',
    {
      family: 'ipv6',
      type: 'local',
      destination: 'default',
      dev: 'lo',
      table: 100,
      scope: 'universe',
      protocol: 84,
      metric: 1024,
    },
  ],
  [
    'blackhole 10.9.0.0/16 proto boot scope global',
    { family: 'ipv4', type: 'blackhole', destination: '10.9.0.0/16', table: 1000, scope: 'universe', protocol: 3 },
  ],
  [
    'unreachable default proto boot scope global metric 4278198272',
    {
      family: 'ipv4',
      type: 'unreachable',
      destination: 'default',
      table: 100,
      metric: 4278198272,
      scope: 'universe',
      protocol: 3,
    },
  ],
  [
    'unicast 10.7.0.0/16 dev eth0 proto boot scope link',
    {
      family: 'ipv4',
      type: 'unicast',
      destination: '10.7.0.0/16',
      dev: 'eth0',
      table: 100,
      scope: 'link',
      protocol: 3,
    },
  ],
  [
    'unicast 10.8.0.0/16 via 10.1.0.2 dev eth0 proto boot scope global src 10.1.0.1 metric 5',
    {
      family: 'ipv4',
      type: 'unicast',
      destination: '10.8.0.0/16',
      gateway: '10.1.0.2',
      preferredSource: '10.1.0.1',
      metric: 5,
      dev: 'eth0',
      table: 100,
      scope: 'universe',
      protocol: 3,
    },
  ],
  [
    'unicast 2001:db9::/32 via 2001:db8:1::2 dev eth0 proto boot scope global metric 7 pref medium',
    {
      family: 'ipv6',
      type: 'unicast',
      destination: '2001:db9::/32',
      gateway: '2001:db8:1::2',
      metric: 7,
      dev: 'eth0',
      table: 100,
      scope: 'universe',
      protocol: 3,
    },
  ],
];
for (const [words, route] of routes)
  test(`${route.family} route ${words}`, async () => {
    const before = await socket.routeList();
    await socket.routeAdd(route);
    assert.equal(await socket.routeList({ table: route.table }), [route]);
    assert.equal(await socket.routeList({ family: route.family, table: route.table }), [route]);
    const shown = ip(route.family === 'ipv4' ? '-4' : '-6', '-d', 'route', 'show', 'table', String(route.table));
    assert.is(shown.replaceAll(/\s+/g, ' ').trim(), words);
    await socket.routeDelete(route);
    assert.equal(await socket.routeList(), before);
  });

test('a route that is there: EEXIST; one that is not: ESRCH; an interface that is not: ENODEV', async () => {
  const route: Route = { family: 'ipv4', type: 'local', destination: 'default', dev: 'lo', table: 100, protocol: 84 };
  await socket.routeAdd(route);
  assert.is((await refusal(socket.routeAdd(route))).code, 'EEXIST');
  socket.commitSync([{ verb: 'delete', kind: 'route', route }]);
  assert.is((await refusal(socket.routeDelete(route))).code, 'ESRCH');
  const missing = await refusal(socket.routeAdd({ ...route, dev: 'nowhere0' }));
  assert.equal([missing.code, missing.operation], ['ENODEV', 'get link nowhere0']);
});

test('a table that nobody has used yet is empty', async () => {
  assert.equal(await socket.routeList({ table: 4242 }), []);
});

test('a device by its number', async () => {
  const { index } = (await socket.linkList()).find((link) => link.name === 'eth0') ?? { index: 0 };
  const route: Route = { family: 'ipv4', type: 'unicast', destination: '10.7.0.0/16', dev: index, table: 100 };
  await socket.routeAdd(route);
  assert.is((await socket.routeList({ table: 100 }))[0]?.dev, 'eth0');
  await socket.routeDelete(route);
});

// ---- links and addresses ------------------------------------------------------------------------------------------------------

test('links and addresses are those of `ip`', async () => {
  const links = JSON.parse(ip('-j', 'link')) as { ifindex: number; ifname: string; mtu: number }[];
  assert.equal(
    (await socket.linkList()).map(({ index, name, mtu }) => ({ ifindex: index, ifname: name, mtu })),
    links.map(({ ifindex, ifname, mtu }) => ({ ifindex, ifname, mtu })),
  );
  const found = (await socket.addressList()).map(
    ({ family, address, prefixLength, linkIndex, scope }) =>
      `${family} ${address}/${prefixLength} ${linkIndex} ${scope}`,
  );
  const words = { inet: 'ipv4', inet6: 'ipv6', global: 'universe', host: 'host', link: 'link' } as const;
  type Info = { family: 'inet' | 'inet6'; local: string; prefixlen: number; scope: 'global' | 'host' | 'link' };
  const shown = (JSON.parse(ip('-j', 'address')) as { ifindex: number; addr_info: Info[] }[]).flatMap((link) =>
    link.addr_info.map((a) => `${words[a.family]} ${a.local}/${a.prefixlen} ${link.ifindex} ${words[a.scope]}`),
  );
  assert.equal(found.sort(), shown.sort());
  assert.ok((await socket.addressList('ipv6')).every(({ family }) => family === 'ipv6'));
});

test('several next hops, as `ip` tells them', async () => {
  const both: readonly (readonly [Route, ...string[]])[] = [
    [
      {
        ...{ family: 'ipv4', type: 'unicast', destination: '10.7.0.0/16', table: 100, scope: 'universe', protocol: 3 },
        nexthops: [
          { gateway: '10.1.0.2', dev: 'eth0', weight: 3 },
          { gateway: '10.1.0.3', dev: 'eth0', weight: 1 },
        ],
      },
      'nexthop via 10.1.0.2 dev eth0 weight 3',
      'nexthop via 10.1.0.3 dev eth0 weight 1',
    ],
    [
      {
        ...{
          family: 'ipv6',
          type: 'unicast',
          destination: '2001:db9::/32',
          table: 100,
          scope: 'universe',
          protocol: 3,
        },
        ...{ metric: 1024 },
        nexthops: [
          { gateway: '2001:db8:1::2', dev: 'eth0', weight: 2 },
          { gateway: '2001:db8:1::3', dev: 'eth0', weight: 256 },
        ],
      },
      'nexthop via 2001:db8:1::2 dev eth0 weight 2',
      'nexthop via 2001:db8:1::3 dev eth0 weight 256',
    ],
  ];
  for (const [route, ...words] of both) {
    await socket.commit([{ verb: 'add', kind: 'route', route }]);
    const shown = ip(route.family === 'ipv6' ? '-6' : '-4', 'route', 'show', 'table', '100');
    for (const each of words) assert.ok(shown.includes(each), shown);
    assert.equal(await socket.routeList({ table: 100, family: route.family }), [route]);
    await socket.routeDelete(route);
    assert.equal(await socket.routeList({ table: 100, family: route.family }), []);
  }
  const [[route]] = both as [[Route]];
  await rejects(
    () => socket.routeAdd({ ...route, nexthops: [{ gateway: 'fe80::1' }] }),
    /nexthops\[0\]\.gateway must be an ipv4/,
  );
  await rejects(
    () => socket.routeAdd({ ...route, nexthops: [{ weight: 0 }] }),
    /nexthops\[0\]\.weight must be 1 to 256/,
  );
  await rejects(() => socket.routeAdd({ ...route, nexthops: [{ dev: 'nowhere0' }] }), /ENODEV/);
});

test('replace: the route in that place, or a new one', async () => {
  const route: Route = { family: 'ipv4', type: 'unicast', destination: '10.7.0.0/16', dev: 'eth0', table: 100 };
  await socket.routeReplace(route);
  await socket.routeReplace({ ...route, gateway: '10.1.0.2' });
  assert.is(ip('route', 'show', 'table', '100').trim(), '10.7.0.0/16 via 10.1.0.2 dev eth0');
  const { dev: _, ...nowhere } = { ...route, type: 'blackhole' } as const;
  await socket.commit([{ verb: 'replace', kind: 'route', route: nowhere }]);
  assert.is(ip('route', 'show', 'table', '100').trim(), 'blackhole 10.7.0.0/16');
  await socket.routeDelete(nowhere);
  await rejects(() => socket.commit([{ verb: 'replace', kind: 'rule', rule: rules[0]?.[1] }] as never), /add, delete/);
});

/** The words of `ip route get` that a Route has too. */
const way = ({ type, destination, gateway, dev, table, preferredSource }: Route) =>
  [
    ...(type === 'unicast' ? [] : [type]),
    destination.replace(/\/(32|128)$/, ''),
    ...(gateway ? [`via ${gateway}`] : []),
    `dev ${dev}`,
    ...(table === 254 ? [] : [`table ${table === 255 ? 'local' : table}`]),
    ...(preferredSource ? [`src ${preferredSource}`] : []),
  ].join(' ');
const getWay = (...words: string[]) =>
  (ip('route', 'get', ...words).split('\n')[0] ?? '')
    .replaceAll(/ (from|mark|uid|iif|metric|pref|proto) \S+/g, '')
    .replaceAll(/\s+/g, ' ')
    .trim();

test('get: the way that `ip route get` tells', async () => {
  const family = 'ipv4';
  ip('route', 'add', '192.0.2.0/24', 'via', '10.1.0.2');
  ip('route', 'add', '192.0.2.0/24', 'via', '10.1.0.3', 'table', '100');
  ip('rule', 'add', 'fwmark', '5', 'lookup', '100', 'pref', '50');
  ip('rule', 'add', 'uidrange', '0-0', 'to', '192.0.2.9', 'lookup', '100', 'pref', '51');
  const destination = '192.0.2.1';
  const cases: readonly (readonly [RouteQuery, ...string[]])[] = [
    [{ family, destination }, destination],
    [{ family, destination, mark: 5 }, destination, 'mark', '5'],
    [{ family, destination: '192.0.2.9', uid: 0 }, '192.0.2.9', 'uid', '0'],
    [{ family, destination, source: '10.1.0.1' }, destination, 'from', '10.1.0.1'],
    [{ family, destination: '10.1.0.9', oif: 'eth0' }, '10.1.0.9', 'oif', 'eth0'],
    [{ family, destination: '10.1.0.1' }, '10.1.0.1'],
    [
      { family, destination: '10.1.0.1', source: '10.1.0.9', iif: 'eth0' },
      '10.1.0.1',
      'from',
      '10.1.0.9',
      'iif',
      'eth0',
    ],
    [{ family: 'ipv6', destination: '2001:db8:1::2' }, '2001:db8:1::2'],
  ];
  for (const [query, ...words] of cases)
    assert.is(way(await socket.routeGet(query)), getWay(...words), words.join(' '));
  const marked = await socket.routeGet({ family, destination, mark: 5 });
  assert.equal([marked.gateway, marked.table], ['10.1.0.3', 100]);
  assert.is((await refusal(socket.routeGet({ family, destination: '198.51.100.1' }))).code, 'ENETUNREACH');
  assert.is((await refusal(socket.routeGet({ family, destination, iif: 'nowhere0' }))).code, 'ENODEV');
  await rejects(() => socket.routeGet({ family, destination: '2001:db8::1' }), /query.destination/);
  ip('rule', 'del', 'pref', '50');
  ip('rule', 'del', 'pref', '51');
  ip('route', 'del', '192.0.2.0/24', 'table', '100');
  ip('route', 'del', '192.0.2.0/24');
});

test('addresses: added, replaced, deleted', async () => {
  const { index: linkIndex } = await socket.linkGet('eth0');
  const before = await socket.addressList();
  const of = async (wanted: string) => (await socket.addressList()).filter(({ address }) => address === wanted);
  const address = {
    family: 'ipv4',
    address: '10.2.0.1',
    peer: '10.3.0.1',
    broadcast: '10.3.0.255',
    prefixLength: 24,
    linkIndex,
    scope: 'link',
  } as const;
  await socket.addressAdd(address);
  assert.match(ip('address', 'show', 'eth0'), 'inet 10.2.0.1 peer 10.3.0.1/24 brd 10.3.0.255 scope link eth0');
  assert.equal(await of('10.2.0.1'), [{ ...address, flags: ['permanent'] }]);
  assert.is((await refusal(socket.addressAdd(address))).code, 'EEXIST');
  await socket.addressReplace(address);
  assert.equal(await of('10.2.0.1'), [{ ...address, flags: ['permanent'] }]);
  await socket.addressDelete(address);
  assert.is((await refusal(socket.addressDelete(address))).code, 'EADDRNOTAVAIL');
  const six = {
    family: 'ipv6',
    address: '2001:db8:2::1',
    prefixLength: 64,
    linkIndex,
    scope: 'universe',
    flags: ['nodad'],
  } as const;
  await socket.commit([{ verb: 'replace', kind: 'address', address: six }]);
  assert.equal(await of(six.address), [{ ...six, flags: ['nodad', 'permanent'] }]);
  await socket.addressReplace({ ...six, flags: ['nodad', 'noprefixroute'] });
  assert.equal(await of(six.address), [{ ...six, flags: ['nodad', 'permanent', 'noprefixroute'] }]);
  await socket.commit([{ verb: 'delete', kind: 'address', address: six }]);
  assert.equal(await socket.addressList(), before);
  await rejects(() => socket.addressAdd({ ...six, prefixLength: 129 }), /0 to 128/);
});

test('a link goes up and down', async () => {
  ip('link', 'add', 'dummy0', 'type', 'veth', 'peer', 'name', 'dummy1');
  const IFF_UP = 1;
  const { index, flags } = await socket.linkGet('dummy0');
  assert.is(flags & IFF_UP, 0);
  await socket.linkSet('dummy0', { up: true });
  assert.equal((await socket.linkGet(index)).name, 'dummy0');
  assert.is((await socket.linkGet(index)).flags & IFF_UP, IFF_UP);
  assert.match(ip('link', 'show', 'dummy0'), /<[^>]*UP/);
  await socket.linkSet(index, { up: false });
  assert.is((await socket.linkGet('dummy0')).flags & IFF_UP, 0);
  ip('link', 'del', 'dummy0');
  assert.is((await refusal(socket.linkGet('dummy0'))).code, 'ENODEV');
  assert.is((await refusal(socket.linkSet(index, { up: true }))).code, 'ENODEV');
});

/** What `ip -d -j link show NAME` tells. */
const shownLink = (name: string) => (JSON.parse(ip('-d', '-j', 'link', 'show', name)) as Record<string, unknown>[])[0];

test('a veth pair: made with its settings, its peer elsewhere, deleted', async () => {
  const before = await socket.linkList();
  ip('netns', 'add', 'other');
  const netns = '/run/netns/other';
  const other = new RouteSocket({ netns });
  await socket.linkAdd({
    name: 'veth0',
    up: true,
    mtu: 1400,
    address: '02:00:00:00:00:01',
    index: 66,
    linkInfo: { kind: 'veth', peer: { name: 'far0', netns, mtu: 1300, address: '02:00:00:00:00:02', index: 77 } },
  });
  const near = await socket.linkGet('veth0');
  const far = await other.linkGet('far0');
  assert.equal(
    [near.mtu, near.address, near.flags & 1, near.link, near.linkInfo],
    [1400, '02:00:00:00:00:01', 1, 77, { kind: 'veth' }],
  );
  assert.equal(
    [far.index, far.mtu, far.address, far.flags & 1, far.link, far.linkInfo],
    [77, 1300, '02:00:00:00:00:02', 0, 66, { kind: 'veth' }],
  );
  assert.type(far.linkNetnsId, 'number');
  assert.is((await refusal(socket.linkAdd({ name: 'veth0', linkInfo: { kind: 'veth' } }))).code, 'EEXIST');
  await other.linkDelete(77);
  assert.equal(await socket.linkList(), before);
  assert.is((await refusal(socket.linkDelete('veth0'))).code, 'ENODEV');
  await other.close();
  ip('netns', 'delete', 'other');
});

test('a bridge and its ports, as `ip` tells them', async () => {
  const settings = {
    ...{ forwardDelay: 400, helloTime: 300, maxAge: 1000, ageingTime: 6000, stpState: 0, priority: 4096 },
    mcastSnooping: false,
  };
  await socket.linkAdd({ name: 'br0', linkInfo: { kind: 'bridge', ...settings } });
  assert.equal((await socket.linkGet('br0')).linkInfo, { kind: 'bridge', ...settings, vlanFiltering: false });
  const shown = JSON.stringify(shownLink('br0')?.['linkinfo']);
  assert.match(
    shown,
    '"forward_delay":400,"hello_time":300,"max_age":1000,"ageing_time":6000,"stp_state":0,"priority":4096',
  );
  assert.match(shown, '"mcast_snooping":0');
  await socket.linkAdd({ name: 'port0', master: 'br0', linkInfo: { kind: 'veth' } });
  const { index } = await socket.linkGet('br0');
  assert.equal([(await socket.linkGet('port0')).master, shownLink('port0')?.['master']], [index, 'br0']);
  await socket.linkSet('port0', { master: null });
  assert.is((await socket.linkGet('port0')).master, undefined);
  await socket.linkSet('port0', { master: index, mtu: 1350 });
  assert.equal([shownLink('port0')?.['master'], shownLink('port0')?.['mtu']], ['br0', 1350]);
  // Neither is that it leaves the bridge a link's going, nor what the bridge tells of it a link's coming.
  const told: RouteChange[] = [];
  const end = socket.watch((changes) => told.push(...changes));
  await socket.linkSet('port0', { master: null });
  await socket.linkDelete('port0');
  await until(() => told.some(isDeletion('port0')), 'its deletion is told');
  end();
  assert.is(told.filter(isDeletion('port0')).length, 1);
  await socket.linkDelete('br0');
});
const isDeletion = (name: string) => (change: RouteChange) =>
  change.kind === 'link' && change.verb === 'delete' && change.link.name === name;

test('links of other kinds, and those that the kernel does not have', async () => {
  const vxlan = Buffer.from('0800010007000000' + '06000f0012b50000', 'hex'); // IFLA_VXLAN_ID 7, IFLA_VXLAN_PORT 4789
  const kinds: readonly (readonly [command: string, linkInfo: LinkInfo])[] = [
    ['name x0 type ifb', { kind: 'ifb' }],
    ['name x0 type dummy', { kind: 'dummy' }],
    ['link eth0 name x0 type macvlan mode bridge', { kind: 'macvlan', mode: 'bridge' }],
    ['link eth0 name x0 type vlan protocol 802.1ad id 5', { kind: 'vlan', id: 5, protocol: '802.1ad' }],
    ['name x0 type vxlan id 7 dstport 4789', { kind: 'unknown', name: 'vxlan', data: new Uint8Array(vxlan) }],
  ];
  const made: string[] = [];
  for (const [words, linkInfo] of kinds) {
    const tried = spawnSync('ip', ['link', 'add', ...words.split(' ')]);
    const wanted = tried.status === 0 ? shownLink('x0')?.['linkinfo'] : undefined;
    if (wanted) await socket.linkDelete('x0');
    const refused = await socket
      .linkAdd({ name: 'x0', linkInfo, ...(words.startsWith('link') && { link: 'eth0' }) })
      .catch((error: NetlinkError) => error);
    assert.is(refused?.code, wanted ? undefined : 'EOPNOTSUPP', words);
    if (refused) continue;
    made.push(linkInfo.kind);
    assert.equal(shownLink('x0')?.['linkinfo'], wanted);
    const found = (await socket.linkGet('x0')).linkInfo;
    if (linkInfo.kind !== 'unknown') assert.equal(found, linkInfo);
    else assert.ok(found?.kind === 'unknown' && found.name === linkInfo.name && found.data?.length);
    await socket.linkDelete('x0');
  }
  assert.ok(made.length >= 2, String(made));
  const none = await refusal(socket.linkAdd({ name: 'x0', linkInfo: { kind: 'unknown', name: 'teleport' } }));
  assert.equal([none.code, none.operation, none.request], ['EOPNOTSUPP', 'add link x0', 'RTM_NEWLINK']);
});

test('a link changes its address, its name, its namespace', async () => {
  await socket.linkAdd({ name: 'veth0', linkInfo: { kind: 'veth', peer: { name: 'veth1' } } });
  await socket.linkSet('veth0', { name: 'lan0', address: '02:00:00:00:00:07', mtu: 1280 });
  ip('link', 'property', 'add', 'dev', 'lan0', 'altname', 'the-one-to-the-left');
  const { index, address, mtu, altNames } = await socket.linkGet('lan0');
  assert.equal([address, mtu, altNames], ['02:00:00:00:00:07', 1280, ['the-one-to-the-left']]);
  const process = spawn('unshare', ['-n', 'sh', '-c', 'echo; read _; ip -o link show'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(process.stdout, 'data');
  await socket.linkSet(index, { netns: process.pid ?? 0, name: 'lan1' });
  assert.is((await refusal(socket.linkGet('lan0'))).code, 'ENODEV');
  let there = '';
  process.stdout.on('data', (text) => {
    there += text;
  });
  process.stdin.end('\n');
  await once(process, 'close'); // the namespace goes, and the pair with it
  assert.match(there, /lan1@/);
  await until(() => !ip('link').includes('veth1'), 'it is gone');
  assert.is((await refusal(socket.linkGet('veth1'))).code, 'ENODEV');
  const nowhere = await socket.linkSet('eth0', { netns: '/run/netns/none' }).catch((error: SocketError) => error);
  assert.equal([nowhere?.code, nowhere?.syscall], ['ENOENT', 'open /run/netns/none']);
  assert.is((await refusal(socket.linkSet('eth0', { master: 'none0' }))).code, 'ENODEV');
  assert.is((await refusal(socket.linkSet('eth0', { name: 'eth1' }))).code, 'EEXIST');
});

test('what a link is told is checked before', async () => {
  const wrong = async (change: object) => (await refusal(socket.linkSet('eth0', change))).message;
  assert.match(await wrong({ address: '02:00', mtu: '1500' }), /change\.mtu/);
  assert.match(await wrong({ address: '02-00' }), /change\.address/);
  assert.match(await wrong({ netns: '' }), /change\.netns/);
  const make = async (linkInfo: object) => (await refusal(socket.linkAdd({ name: 'x0', linkInfo } as NewLink))).message;
  assert.match(await make({ kind: 'vlan' }), /link\.linkInfo\.id/);
  assert.match(await make({ kind: 'bridge', id: 5 }), /link\.linkInfo/);
  assert.match(await make({ kind: 'veth', peer: { master: 'br0' } }), /link\.linkInfo\.peer/);
  assert.match(await make({ kind: 'teleport' }), /link\.linkInfo\.kind/);
});

// ---- large dumps, and dumps while others change ----------------------------------------------------------------------------

const many = 5000;
const manyRules = (verb: string) => Array.from({ length: many }, (_, i) => `rule ${verb} pref ${1000 + i} lookup 100`);

test(`${many} rules and routes are listed to the last`, async () => {
  batch(manyRules('add'));
  const rules = (await socket.ruleList('ipv4')).filter(({ table }) => table === 100);
  assert.equal(
    rules.map(({ priority }) => priority),
    Array.from({ length: many }, (_, i) => 1000 + i),
  );
  batch(manyRules('del'));
  const destinations = Array.from({ length: many }, (_, i) => `10.${20 + (i >> 8)}.${i & 255}.0/24`);
  batch(destinations.map((destination) => `route add blackhole ${destination} table 300`));
  const routes = await socket.routeList({ table: 300 });
  assert.equal(routes.map(({ destination }) => destination).sort(), [...destinations].sort());
  ip('route', 'flush', 'table', '300');
});

test('a dump while others change what is dumped is whole, or an error that says so', async () => {
  batch(manyRules('add'));
  // Adds and removes one rule, over and over, far from those that are counted.
  const changer = spawn('sh', ['-c', 'while :; do ip rule add pref 9 lookup 9; ip rule del pref 9; done'], {
    detached: true,
  });
  try {
    for (let i = 0; i < 20; ++i) {
      const listed = await socket.ruleList('ipv4').catch((error: NetlinkError) => error);
      if (listed instanceof Error) assert.is(listed.code, 'EINTR');
      else assert.is(listed.filter(({ table }) => table === 100).length, many);
    }
  } finally {
    if (changer.pid) process.kill(-changer.pid, 'SIGKILL');
    await once(changer, 'close');
  }
  spawnSync('ip', ['rule', 'del', 'pref', '9']);
  batch(manyRules('del'));
});

// ---- the socket -----------------------------------------------------------------------------------------------------------------

test('calls on one socket run in the order in which they were made', async () => {
  const rule: Rule = { family: 'ipv4', action: 'lookup', table: 100, priority: 60, protocol: 84 };
  const outcomes: string[] = [];
  const note = (name: string, promise: Promise<unknown>) => promise.then(() => outcomes.push(name));
  const calls: Promise<unknown>[] = [];
  for (let i = 0; i < 50; ++i)
    calls.push(note(`add ${i}`, socket.ruleAdd(rule)), note(`delete ${i}`, socket.ruleDelete(rule)));
  await Promise.all(calls);
  assert.equal(outcomes, Array.from({ length: 50 }, (_, i) => [`add ${i}`, `delete ${i}`]).flat());
});

test('close: the call under way is finished, those that wait and later ones fail with EBADF', async () => {
  const closing = new RouteSocket();
  const first = closing.ruleList();
  const second = refusal(closing.ruleList());
  const closed = Promise.all([closing.close(), closing.close()]);
  assert.ok((await first).length > 0);
  assert.is((await second).code, 'EBADF');
  assert.is((await refusal(closing.linkList())).code, 'EBADF');
  assert.throws(
    () => closing.commitSync([{ verb: 'delete', kind: 'rule', rule: { family: 'ipv4', action: 'nop' } }]),
    (error: NetlinkError) => error.code === 'EBADF',
  );
  await closed;
});

test('another network namespace', async () => {
  ip('netns', 'add', 'other');
  const other = new RouteSocket({ netns: '/run/netns/other' });
  assert.equal(
    (await other.linkList()).map(({ name }) => name),
    ['lo'],
  );
  const here = await socket.ruleList();
  const rule: Rule = { family: 'ipv4', action: 'lookup', table: 100, priority: 50, protocol: 84 };
  await other.ruleAdd(rule);
  assert.equal(
    (await other.ruleList()).filter(({ priority }) => priority === 50),
    [rule],
  );
  assert.equal(await socket.ruleList(), here);
  await other.close();
  ip('netns', 'delete', 'other');
});

test('a namespace that is none', () => {
  const open = (netns: string) => () => new RouteSocket({ netns });
  assert.throws(
    open('/run/netns/none'),
    (error: SocketError) => error.code === 'ENOENT' && error.syscall === 'open /run/netns/none',
  );
  assert.throws(
    open('/dev/null'),
    (error: SocketError) => error.code === 'EINVAL' && error.syscall === 'setns /dev/null',
  );
});

test('without CAP_NET_ADMIN: listing works, changing gives EPERM', () => {
  const program = `
    import { RouteSocket } from '${compiled('src/netlink/route.ts')}';
    const socket = new RouteSocket();
    const rules = await socket.ruleList();
    const code = await socket.ruleAdd({ family: 'ipv4', action: 'nop' }).catch((error) => error.code);
    console.log(rules.length > 0, code);`;
  const drop = ['--bounding-set', '-net_admin', '--inh-caps', '-net_admin'];
  const node = [process.execPath, '--input-type=module', '-e', program];
  assert.is(execFileSync('setpriv', [...drop, ...node], { encoding: 'utf8' }).trim(), 'true EPERM');
});

test('work that keeps the threads of libuv busy keeps no call waiting', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'linux-tproxy-fifos-'));
  // To open one takes until somebody opens its other end.
  const fifos = Array.from({ length: 8 }, (_, index) => join(directory, `${index}`));
  execFileSync('mkfifo', fifos);
  const opened = fifos.map((fifo) => open(fifo, 'r'));
  try {
    const rules = socket.ruleList('ipv4');
    assert.ok(await Promise.race([rules.then(({ length }) => length > 0), sleep(5000, false)]));
  } finally {
    for (const fifo of fifos) closeSync(openSync(fifo, 'r+'));
    for (const handle of await Promise.all(opened)) await handle.close();
    rmSync(directory, { recursive: true });
  }
});

test('more sockets than threads', async () => {
  const others = Array.from({ length: 12 }, () => new RouteSocket());
  const answers = await Promise.all(others.flatMap((each) => [each.linkList(), each.ruleList(), each.addressList()]));
  for (const answer of answers) assert.ok(answer.length > 0);
  await Promise.all(others.map((each) => each.close()));
});

test('a worker that is terminated in mid-call takes nothing with it', async () => {
  batch(manyRules('add'));
  // Native code alone, without TypeScript, which workers do not run.
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const program = `
    const { parentPort, workerData } = require('node:worker_threads');
    const load = require('node:module').createRequire(workerData + 'package.json')('node-gyp-build');
    const socket = new (load(workerData).RouteSocket)();
    for (let i = 0; i < 20; ++i) socket.ruleList();
    parentPort.postMessage('under way');`;
  for (let i = 0; i < 5; ++i) {
    const worker = new Worker(program, { eval: true, workerData: root });
    await once(worker, 'message');
    await worker.terminate();
  }
  assert.ok((await socket.ruleList('ipv4')).length >= many);
  batch(manyRules('del'));
});

test('arguments are checked before the kernel sees them', async () => {
  const wrong = (value: object) => refusal(socket.ruleAdd(value as Rule));
  assert.match((await wrong({ family: 'ipv5', action: 'nop' })).message, /rule\.family must be 'ipv4' or 'ipv6'/);
  assert.match((await wrong({ family: 'ipv4', action: 'nop', pref: 1 })).message, /pref/);
  assert.instance(await wrong({ family: 'ipv4', action: 'lookup', table: 2 ** 32 }), RangeError);
  assert.instance(await wrong({ family: 'ipv4', action: 'lookup', from: '2001:db8::/32' }), TypeError);
  assert.instance(await wrong({ family: 'ipv4', action: 'hop' }), TypeError);
  assert.instance(await wrong({ family: 'ipv4', action: 'nop', iif: 'sixteen-bytes-ab' }), TypeError);
  assert.instance(await wrong({ family: 'ipv4', action: 'nop', users: { start: 2, end: 1 } }), RangeError);
  assert.match(
    String(await wrong(Object.create({ family: 'ipv4', action: 'nop', tos: 256 }))),
    /RangeError.*rule\.tos/,
  );
});

test('LINUX_TPROXY_DEBUG=netlink shows every message', () => {
  const program = `
    import { RouteSocket } from '${compiled('src/netlink/route.ts')}';
    await new RouteSocket().linkList();`;
  const { stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    env: { ...process.env, LINUX_TPROXY_DEBUG: 'netlink' },
    encoding: 'utf8',
  });
  assert.match(stderr, /netlink \w+ > type 0x12 flags 0x301 seq 1 length 40\n/); // RTM_GETLINK
  assert.match(stderr, /netlink \w+ < type 0x10 flags 0x2 seq 1 length \d+\n/); // RTM_NEWLINK
});

// ---- several at once ------------------------------------------------------------------------------------------------------

test('commit: each change for itself, and which failed is told', async () => {
  const rule = (priority: number): Rule => ({ family: 'ipv4', action: 'lookup', table: 7, priority });
  const before = ip('rule');
  await socket.ruleAdd(rule(61));
  const error = await refusal(
    socket.commit([60, 61, 62].map((priority) => ({ verb: 'add', kind: 'rule', rule: rule(priority) }))),
  );
  assert.is(error.code, 'EEXIST');
  assert.equal(
    error.errors?.map(({ index, code, request }) => [index, code, request]),
    [[1, 'EEXIST', 'RTM_NEWRULE']],
  );
  assert.match(ip('rule'), /^60:.*\n61:.*\n62:/m);
  const route: Route = { family: 'ipv4', type: 'unicast', destination: '192.0.2.0/24', dev: 'eth0', table: 7 };
  await socket.commit([
    { verb: 'add', kind: 'route', route },
    ...[60, 61, 62].map((priority) => ({ verb: 'delete', kind: 'rule', rule: rule(priority) }) as const),
  ]);
  assert.match(ip('route', 'show', 'table', '7'), '192.0.2.0/24 dev eth0');
  socket.commitSync([{ verb: 'delete', kind: 'route', route }]);
  assert.is(ip('rule'), before);
  await socket.commit([]);
  const wrong = await refusal(socket.commit([{ verb: 'add', kind: 'rule', rule: { ...rule(60), table: -1 } }]));
  assert.match(wrong.message, /^operations\[0\]\.rule\.table must be 0 to 4294967295/);
});

test('commit: links, with what goes over them', async () => {
  const before = await socket.linkList();
  ip('netns', 'add', 'other');
  const netns = '/run/netns/other';
  const address = { family: 'ipv4', address: '10.5.0.1', prefixLength: 24, linkIndex: 50, scope: 'universe' } as const;
  const route: Route = { family: 'ipv4', type: 'unicast', destination: '192.0.2.0/24', gateway: '10.5.0.2', table: 7 };
  await socket.commit([
    { verb: 'add', kind: 'link', link: { name: 'br0', index: 50, up: true, linkInfo: { kind: 'bridge' } } },
    {
      ...{ verb: 'add', kind: 'link' },
      link: { name: 'near0', index: 51, master: 'br0', linkInfo: { kind: 'veth', peer: { name: 'far0', netns } } },
    },
    { verb: 'set', kind: 'link', dev: 'near0', change: { up: true, mtu: 1400 } },
    { verb: 'add', kind: 'address', address },
    { verb: 'add', kind: 'route', route: { ...route, dev: 'br0' } },
    { verb: 'set', kind: 'link', dev: 'eth1', change: { up: false } },
  ]);
  const near = await socket.linkGet('near0');
  assert.equal([near.index, near.master, near.mtu, near.flags & 1], [51, 50, 1400, 1]);
  assert.match(ip('-n', 'other', 'link', 'show', 'far0'), /far0/);
  assert.match(ip('route', 'show', 'table', '7'), '192.0.2.0/24 via 10.5.0.2 dev br0');
  assert.is((await socket.linkGet('eth1')).flags & 1, 0);

  // Each for itself.
  const bridge = { name: 'br1', linkInfo: { kind: 'bridge' } } as const;
  const error = await refusal(
    socket.commit([
      { verb: 'add', kind: 'link', link: { ...bridge, name: 'br0' } },
      { verb: 'add', kind: 'link', link: bridge },
      { verb: 'delete', kind: 'link', dev: 99 },
      { verb: 'delete', kind: 'link', dev: 'near0' },
    ]),
  );
  assert.equal(
    error.errors?.map(({ index, code, request }) => [index, code, request]),
    [
      [0, 'EEXIST', 'RTM_NEWLINK'],
      [2, 'ENODEV', 'RTM_DELLINK'],
    ],
  );
  assert.equal(JSON.parse(ip('-n', 'other', '-j', 'link')).length, 1, 'its peer has gone with it');
  // A name of nothing that is there: nothing is done.
  const unknown = await refusal(
    socket.commit([
      { verb: 'delete', kind: 'link', dev: 'br0' },
      { verb: 'delete', kind: 'link', dev: 'br2' },
    ]),
  );
  assert.equal([unknown.code, unknown.operation], ['ENODEV', 'get link br2']);
  assert.is((await socket.linkGet('br0')).index, 50);
  socket.commitSync([
    { verb: 'delete', kind: 'link', dev: 'br0' },
    { verb: 'delete', kind: 'link', dev: 'br1' },
    { verb: 'set', kind: 'link', dev: 'eth1', change: { up: true } },
  ]);
  assert.equal(
    (await socket.linkList()).map(({ name }) => name),
    before.map(({ name }) => name),
  );
  ip('netns', 'delete', 'other');
  await rejects(() => socket.commit([{ verb: 'replace', kind: 'link', link: bridge }] as never), /add, set, delete/);
  await rejects(() => socket.commit([{ verb: 'set', kind: 'link', change: {} }] as never), /operations\[0\]\.dev must/);
});

test('sequence: one after the other on several sockets, until one fails', async () => {
  const other = new RouteSocket();
  const rule: Rule = { family: 'ipv4', action: 'lookup', table: 7, priority: 60 };
  const [, rules] = await Promise.all(sequence(() => [socket.ruleAdd(rule), other.ruleList('ipv4')]));
  assert.ok(rules.some(({ priority }) => priority === 60));
  const results = await Promise.allSettled(
    sequence(() => [other.linkList(), socket.ruleAdd(rule), other.ruleDelete(rule)]),
  );
  assert.equal(
    results.map((each) => (each.status === 'rejected' ? each.reason.code : 'done')),
    ['done', 'EEXIST', 'EEXIST'],
  );
  assert.match(ip('rule'), /^60:/m); // what is behind a failure is not done
  const refused = await refusal(
    Promise.all(sequence(() => [other.ruleDelete({ ...rule, table: -1 }), socket.ruleDelete(rule)])),
  );
  assert.match(refused.message, /^rule\.table must be/);
  assert.match(ip('rule'), /^60:/m);
  await socket.ruleDelete(rule);
  assert.throws(() => sequence(() => sequence(() => [socket.linkList()])), /a sequence inside a sequence/);
  await other.close();
});

test.run();
