/** Policy rules and routes: our bytes are those of `ip` for the same words, and read back as what they were made of. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';
import type { Address, LinkChange, NewLink, Route, RouteQuery, Rule } from '../../src/netlink/types.js';
import { difference, normalised, read } from './fixture.js';

const test = suite('golden rtnetlink');

const proxy = { protocol: 84 } as const;
const TCP = 6;
const UDP = 17;

const rules: Record<string, Rule> = {
  'add iif lo fwmark 0x2/0x3 lookup 100 pref 97 protocol 84': {
    family: 'ipv4',
    action: 'lookup',
    iif: 'lo',
    fwmark: { value: 2, mask: 3 },
    table: 100,
    priority: 97,
    ...proxy,
  },
  'add iif lo fwmark 0x1/0x3 goto 101 pref 99 protocol 84': {
    family: 'ipv4',
    action: 'goto',
    goto: 101,
    iif: 'lo',
    fwmark: { value: 1, mask: 3 },
    priority: 99,
    ...proxy,
  },
  'add fwmark 0x1/0x3 lookup 100 pref 100 protocol 84': {
    family: 'ipv4',
    action: 'lookup',
    table: 100,
    fwmark: { value: 1, mask: 3 },
    priority: 100,
    ...proxy,
  },
  'add fwmark 0x1/0x3 nop pref 102 protocol 84': {
    family: 'ipv4',
    action: 'nop',
    fwmark: { value: 1, mask: 3 },
    priority: 102,
    ...proxy,
  },
  'add from 10.0.0.0/8 to 192.0.2.1 iif lo oif eth0 tos 0x10 lookup 1000 pref 7': {
    family: 'ipv4',
    action: 'lookup',
    from: '10.0.0.0/8',
    to: '192.0.2.1/32',
    iif: 'lo',
    oif: 'eth0',
    tos: 0x10,
    table: 1000,
    priority: 7,
  },
  'add from 2001:db8::/32 to 2001:db8::1 lookup 1000 pref 7': {
    family: 'ipv6',
    action: 'lookup',
    from: '2001:db8::/32',
    to: '2001:db8::1/128',
    table: 1000,
    priority: 7,
  },
  'add ipproto tcp sport 1-10 dport 80 uidrange 0-1000 lookup 254': {
    family: 'ipv4',
    action: 'lookup',
    ipProtocol: TCP,
    sourcePorts: { start: 1, end: 10 },
    destinationPorts: { start: 80, end: 80 },
    users: { start: 0, end: 1000 },
    table: 254,
  },
  'add ipproto udp dport 53 lookup 4294967295': {
    family: 'ipv6',
    action: 'lookup',
    ipProtocol: UDP,
    destinationPorts: { start: 53, end: 53 },
    table: 0xffffffff,
  },
  'add not fwmark 0xca6c/0xffffffff lookup 51820': {
    family: 'ipv4',
    action: 'lookup',
    invert: true,
    fwmark: { value: 0xca6c, mask: 0xffffffff },
    table: 51820,
  },
  'add lookup 254 suppress_prefixlength 0': { family: 'ipv4', action: 'lookup', table: 254, suppressPrefixLength: 0 },
  'add blackhole': { family: 'ipv4', action: 'blackhole' },
  'add from 2001:db8::/32 prohibit': { family: 'ipv6', action: 'prohibit', from: '2001:db8::/32' },
  'add to 10.0.0.0/8 unreachable': { family: 'ipv4', action: 'unreachable', to: '10.0.0.0/8' },
  'add l3mdev': { family: 'ipv6', action: 'lookup', l3mdev: true },
  'del iif lo fwmark 0x1/0x3 goto 101 pref 98 protocol 84': {
    family: 'ipv4',
    action: 'goto',
    goto: 101,
    iif: 'lo',
    fwmark: { value: 1, mask: 3 },
    priority: 98,
    ...proxy,
  },
  'del fwmark 0x1/0x3 nop pref 101 protocol 84': {
    family: 'ipv6',
    action: 'nop',
    fwmark: { value: 1, mask: 3 },
    priority: 101,
    ...proxy,
  },
  'del lookup 100 pref 5': { family: 'ipv4', action: 'lookup', table: 100, priority: 5 },
};

const routes: Record<string, Route> = {
  'add local default dev lo table 100 protocol 84': {
    family: 'ipv4',
    type: 'local',
    destination: 'default',
    dev: 1,
    table: 100,
    scope: 'host',
    ...proxy,
  },
  'add local 10.0.0.0/8 dev lo table 1000': {
    family: 'ipv4',
    type: 'local',
    destination: '10.0.0.0/8',
    dev: 1,
    table: 1000,
    scope: 'host',
    protocol: 3,
  },
  'add blackhole 10.9.0.0/16': {
    family: 'ipv4',
    type: 'blackhole',
    destination: '10.9.0.0/16',
    table: 254,
    scope: 'universe',
    protocol: 3,
  },
  'add blackhole 2001:db8::/32': {
    family: 'ipv6',
    type: 'blackhole',
    destination: '2001:db8::/32',
    table: 254,
    scope: 'universe',
    protocol: 3,
  },
  'add unreachable default metric 4278198272': {
    family: 'ipv4',
    type: 'unreachable',
    destination: 'default',
    metric: 4278198272,
    table: 254,
    scope: 'universe',
    protocol: 3,
  },
  'add prohibit 10.10.0.0/16 table 200': {
    family: 'ipv4',
    type: 'prohibit',
    destination: '10.10.0.0/16',
    table: 200,
    scope: 'universe',
    protocol: 3,
  },
  'add throw 10.11.0.0/16 table 200': {
    family: 'ipv4',
    type: 'throw',
    destination: '10.11.0.0/16',
    table: 200,
    scope: 'universe',
    protocol: 3,
  },
  'add 10.7.0.0/16 dev eth0': {
    family: 'ipv4',
    type: 'unicast',
    destination: '10.7.0.0/16',
    dev: 5,
    table: 254,
    scope: 'link',
    protocol: 3,
  },
  'add 10.7.1.1 scope host dev eth0': {
    family: 'ipv4',
    type: 'unicast',
    destination: '10.7.1.1/32',
    dev: 5,
    table: 254,
    scope: 'host',
    protocol: 3,
  },
  'add 10.8.0.0/16 via 10.1.0.2 src 10.1.0.1 metric 5 table 300 dev eth0': {
    family: 'ipv4',
    type: 'unicast',
    destination: '10.8.0.0/16',
    gateway: '10.1.0.2',
    preferredSource: '10.1.0.1',
    metric: 5,
    table: 300,
    dev: 5,
    scope: 'universe',
    protocol: 3,
  },
  'add 2001:db9::/32 via fe80::1 metric 7 dev eth0': {
    family: 'ipv6',
    type: 'unicast',
    destination: '2001:db9::/32',
    gateway: 'fe80::1',
    metric: 7,
    table: 254,
    dev: 5,
    scope: 'universe',
    protocol: 3,
  },
  'add 10.12.0.0/16 nexthop via 10.1.0.2 dev eth0 weight 3 nexthop dev eth0': {
    family: 'ipv4',
    type: 'unicast',
    destination: '10.12.0.0/16',
    nexthops: [
      { gateway: '10.1.0.2', dev: 5, weight: 3 },
      { dev: 5, weight: 1 },
    ],
    table: 254,
    scope: 'universe',
    protocol: 3,
  },
  'add 2001:dba::/32 table 300 nexthop via fe80::1 dev eth0 weight 256 nexthop via fe80::2 dev eth0': {
    family: 'ipv6',
    type: 'unicast',
    destination: '2001:dba::/32',
    nexthops: [
      { gateway: 'fe80::1', dev: 5, weight: 256 },
      { gateway: 'fe80::2', dev: 5, weight: 1 },
    ],
    table: 300,
    scope: 'universe',
    protocol: 3,
  },
  'del local default dev lo table 101 protocol 84': {
    family: 'ipv4',
    type: 'local',
    destination: 'default',
    dev: 1,
    table: 101,
    scope: 'host',
    ...proxy,
  },
  'del unicast 10.6.0.0/16 dev eth0': {
    family: 'ipv4',
    type: 'unicast',
    destination: '10.6.0.0/16',
    dev: 5,
    table: 254,
    scope: 'nowhere',
    protocol: 0,
  },
};

routes['replace 10.6.0.0/16 dev eth0 metric 3'] = {
  ...(routes['add 10.7.0.0/16 dev eth0'] as Route),
  destination: '10.6.0.0/16',
  metric: 3,
};

const verbOf = (words: string) =>
  words.startsWith('del') ? 'delete' : words.startsWith('replace') ? 'replace' : 'add';

interface Kind<T> {
  readonly noun: string;
  readonly objects: Record<string, T>;
  readonly encode: (verb: 'add' | 'replace' | 'delete', object: T) => Buffer;
  readonly decode: (message: Uint8Array) => T;
}

function check<T extends Rule | Route>({ noun, objects, encode, decode }: Kind<T>): void {
  const fixture = read(`${noun}s`);
  test(`${noun}s: every captured command has its object`, () => {
    assert.equal(
      [...fixture.keys()].filter((command) => !(command.replace(/^ip -[46] \w+ /, '') in objects)),
      [],
    );
  });
  for (const [command, messages] of fixture) {
    const [, number, words] = /^ip -([46]) \w+ (.*)/.exec(command) ?? [];
    const named = objects[words ?? ''];
    const theirs = normalised(messages[0] ?? Buffer.alloc(0));
    test(command, () => {
      assert.ok(named);
      // The same words for the other family are the same object with its family (and the one scope IPv6 has).
      const family = number === '6' ? 'ipv6' : 'ipv4';
      const object: T =
        named.family === family ? named : { ...named, family, ...('scope' in named ? { scope: 'universe' } : {}) };
      const ours = encode(verbOf(words ?? ''), object);
      if (!ours.equals(theirs)) assert.unreachable(difference(ours, theirs));
      assert.equal(decode(theirs), object);
    });
  }
}

check<Rule>({ noun: 'rule', objects: rules, encode: native.encodeRule, decode: native.decodeRule });
check<Route>({ noun: 'route', objects: routes, encode: native.encodeRoute, decode: native.decodeRoute });

const address = { address: '10.2.0.1', prefixLength: 24, linkIndex: 5, scope: 'universe', family: 'ipv4' } as const;
const address6 = { ...address, family: 'ipv6', address: '2001:db8:2::1', prefixLength: 64 } as const;
const addresses: Record<string, Address> = {
  'ip address add 10.2.0.1/24 dev eth0': address,
  'ip address add 10.2.0.1/24 broadcast 10.2.0.255 dev eth0 scope link': {
    ...address,
    broadcast: '10.2.0.255',
    scope: 'link',
  },
  'ip address add 10.2.0.1 peer 10.3.0.1/24 dev eth0': { ...address, peer: '10.3.0.1' },
  'ip -6 address add 2001:db8:2::1/64 dev eth0 nodad': { ...address6, flags: ['nodad'] },
  'ip -6 address add 2001:db8:2::1/64 dev eth0 noprefixroute': { ...address6, flags: ['noprefixroute'] },
  'ip address replace 10.1.0.1/24 dev eth0': { ...address, address: '10.1.0.1' },
  'ip address del 10.1.0.1/24 dev eth0': { ...address, address: '10.1.0.1' },
  'ip -6 address del 2001:db8:1::1/64 dev eth0': { ...address6, address: '2001:db8:1::1' },
};
for (const [command, [message]] of read('addresses'))
  test(command, () => {
    const theirs = normalised(message ?? Buffer.alloc(0));
    const ours = native.encodeAddress(verbOf(command.replace(/.* address /, '')), addresses[command] as Address);
    if (!ours.equals(theirs)) assert.unreachable(difference(ours, theirs));
    assert.equal(native.decodeAddress(theirs), addresses[command]);
  });

const queries: Record<string, RouteQuery> = {
  'ip route get 192.0.2.1': { family: 'ipv4', destination: '192.0.2.1' },
  'ip route get 10.1.0.1 from 10.1.0.3 iif eth0': {
    family: 'ipv4',
    destination: '10.1.0.1',
    source: '10.1.0.3',
    iif: 5,
  },
  'ip route get 192.0.2.1 from 10.1.0.1 uid 0 oif eth0 mark 0x5': {
    family: 'ipv4',
    destination: '192.0.2.1',
    source: '10.1.0.1',
    uid: 0,
    oif: 5,
    mark: 5,
  },
  'ip -6 route get 2001:db8:1::2 from 2001:db8:1::1 oif eth0': {
    family: 'ipv6',
    destination: '2001:db8:1::2',
    source: '2001:db8:1::1',
    oif: 5,
  },
};
for (const [command, [message]] of read('queries'))
  test(command, () => {
    const theirs = normalised(message ?? Buffer.alloc(0));
    const ours = native.encodeRouteQuery(queries[command] as RouteQuery);
    if (!ours.equals(theirs)) assert.unreachable(difference(ours, theirs));
  });

const newLink = native.encodeNewLink;
const eth0 = (change: LinkChange) => native.encodeLinkChange(5, change);
const bridge = (more: object): NewLink => ({ name: 'br1', linkInfo: { kind: 'bridge', ...more } });
const vlan: NewLink = { name: 'eth0.5', link: 5, linkInfo: { kind: 'vlan', id: 5 } };
const nowhere = 4194303; // not the id of any process
const links: Record<string, () => Buffer> = {
  'set eth0 up': () => eth0({ up: true }),
  'set eth0 down': () => eth0({ up: false }),
  'set eth0 mtu 1400 master br0': () => eth0({ mtu: 1400, master: 7 }),
  'set eth0 nomaster': () => eth0({ master: null }),
  'set eth0 address 02:00:00:00:00:02 name lan0': () => eth0({ address: '02:00:00:00:00:02', name: 'lan0' }),
  'set eth0 netns 4194303': () => eth0({ netns: nowhere }),
  'add veth0 mtu 1400 type veth peer name veth1 mtu 1300': () =>
    newLink({ name: 'veth0', mtu: 1400, linkInfo: { kind: 'veth', peer: { name: 'veth1', mtu: 1300 } } }),
  'add veth0 up index 9 type veth peer address 02:00:00:00:00:03 netns 4194303 name veth1': () => {
    const peer = { name: 'veth1', address: '02:00:00:00:00:03', netns: nowhere };
    return newLink({ name: 'veth0', up: true, index: 9, linkInfo: { kind: 'veth', peer } });
  },
  'add veth2 type veth': () => newLink({ name: 'veth2', linkInfo: { kind: 'veth' } }),
  'add br1 address 02:00:00:00:00:01 type bridge': () => newLink({ ...bridge({}), address: '02:00:00:00:00:01' }),
  'add br1 type bridge forward_delay 400 ageing_time 1000 stp_state 1 priority 4096 vlan_filtering 1 mcast_snooping 0':
    () =>
      newLink(
        bridge({
          ...{ forwardDelay: 400, ageingTime: 1000, stpState: 1, priority: 4096 },
          ...{ vlanFiltering: true, mcastSnooping: false },
        }),
      ),
  'add link eth0 name eth0.5 type vlan id 5': () => newLink(vlan),
  'add link eth0 name eth0.5 master br0 type vlan protocol 802.1ad id 5': () =>
    newLink({ ...vlan, master: 7, linkInfo: { kind: 'vlan', id: 5, protocol: '802.1ad' } }),
  'add dummy0 type dummy': () => newLink({ name: 'dummy0', linkInfo: { kind: 'dummy' } }),
  'add ifb7 type ifb': () => newLink({ name: 'ifb7', linkInfo: { kind: 'ifb' } }),
  'add link eth0 name mac0 type macvlan mode bridge': () =>
    newLink({ name: 'mac0', link: 5, linkInfo: { kind: 'macvlan', mode: 'bridge' } }),
  'add vxlan0 type vxlan id 7 dstport 4789': () => {
    // IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT
    const data = Buffer.from(['0800010007000000', '0500070001000000', '06000f0012b50000'].join(''), 'hex');
    return newLink({ name: 'vxlan0', linkInfo: { kind: 'unknown', name: 'vxlan', data } });
  },
  'del eth0': () => native.encodeLinkDeletion(5),
};
for (const [command, messages] of read('links'))
  test(command, () => {
    const theirs = normalised(messages.at(-1) ?? Buffer.alloc(0));
    const ours = links[command.replace('ip link ', '')]?.() ?? Buffer.alloc(0);
    if (!ours.equals(theirs)) assert.unreachable(difference(ours, theirs));
  });

test('a route without scope and protocol gets those of `ip route`', () => {
  const { scope, protocol, ...plain } = routes['add 10.7.0.0/16 dev eth0'] as Route;
  assert.equal(native.decodeRoute(native.encodeRoute('add', plain)), { ...plain, scope, protocol });
});

test('a device can be named', () => {
  const route = routes['add local default dev lo table 100 protocol 84'] as Route;
  assert.equal(native.encodeRoute('add', { ...route, dev: 'lo' }), native.encodeRoute('add', route));
  assert.throws(() => native.encodeRoute('add', { ...route, dev: 'nowhere0' }), /ENODEV/);
});

test('numbers without a name stay numbers', () => {
  const rule: Rule = { family: 'ipv4', action: 4, table: 300 };
  assert.equal(native.decodeRule(native.encodeRule('add', rule)), rule);
  const route: Route = { family: 'ipv4', type: 12, destination: '10.0.0.0/8', table: 1, scope: 7, protocol: 99 };
  assert.equal(native.decodeRoute(native.encodeRoute('add', route)), route);
});

test.run();
