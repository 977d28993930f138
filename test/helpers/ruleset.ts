/**
 * The rule set of test/golden/nft/{intercept,own-host,everything}.nft as typed objects. Marks under the mask 3: 1 = deliver
 * here, 2 = sent by this host itself, 3 = the proxy's own sockets.
 */
import * as nft from './nft.js';

const {
  accept,
  back,
  counter,
  drop,
  go,
  iif,
  jump,
  l4proto,
  mark,
  nfproto,
  setMark,
  socket,
  syn,
  tproxy,
  tuple,
  TYPE,
} = nft;

export interface Options {
  readonly ownHost?: boolean;
  /** Nobody listens: drop. */
  readonly closed?: boolean;
  /** Both legs of a connection may have the same addresses and ports: a conntrack zone for the client's. */
  readonly zones?: boolean;
}

export function ruleset({ ownHost = false, closed = false, zones = false }: Options): nft.Table {
  const table = new nft.Table('linux-tproxy-50080');
  chains(table, ownHost, zones);
  sets(table, ownHost);
  prerouting(table, ownHost, closed);
  synChain(table, ownHost, closed);
  table
    .rule('remember', ...onTuple(4), nft.update('flows4', table.id('flows4')), accept)
    .rule('remember', ...onTuple(6), nft.update('flows6', table.id('flows6')), accept)
    .rule('remember', accept)
    .rule('divert', socket('wildcard', 1), back)
    .rule('divert', socket('transparent', 1), setMark(3, 1), counter, accept);
  skip(table);
  if (ownHost) output(table);
  if (zones) zoneChains(table);
  return table;
}

function chains(table: nft.Table, ownHost: boolean, zones: boolean): void {
  table.chain('prerouting', { type: 'filter', hook: 'prerouting', priority: -150, policy: 'accept' });
  for (const name of ['syn', 'remember', 'divert', 'skip']) table.chain(name);
  if (ownHost) {
    table.chain('output', { type: 'route', hook: 'output', priority: -150, policy: 'accept' });
    table.chain('output_syn');
  }
  if (zones) {
    table.chain('zone_prerouting', { type: 'filter', hook: 'prerouting', priority: -300, policy: 'accept' });
    table.chain('zone_syn');
    table.chain('zone_output', { type: 'filter', hook: 'output', priority: -300, policy: 'accept' });
  }
}

function sets(table: nft.Table, ownHost: boolean): void {
  const ports = { keyType: TYPE.inet_service, keyLength: 2, flags: ['interval'] } as const;
  const merged = { keyByteorder: 'network', autoMerge: true } as const;
  table.set('tcp_ports', ports, merged, nft.portRanges([80, 80], [9001, 9001]));
  table.set('udp_ports', ports, merged, nft.portRanges([9053, 9053]));
  for (const name of ['exclude_to', 'exclude_from']) {
    table.set(`${name}4`, { keyType: TYPE.ipv4_addr, keyLength: 4, flags: ['interval'] }, { keyByteorder: 'network' });
    table.set(`${name}6`, { keyType: TYPE.ipv6_addr, keyLength: 16, flags: ['interval'] }, { keyByteorder: 'network' });
  }
  const tuples = (name: string, timeoutMs: bigint) => {
    for (const [suffix, address, keyLength] of [
      ['4', TYPE.ipv4_addr, 16],
      ['6', TYPE.ipv6_addr, 40],
    ] as const)
      table.set(
        `${name}${suffix}`,
        {
          keyType: nft.concatenated(address, TYPE.inet_service, address, TYPE.inet_service),
          keyLength,
          flags: ['timeout', 'eval'],
          size: 65536,
          timeoutMs,
        },
        { keyByteorder: 'none', keyExpression: { kind: 'concatenation' } },
      );
  };
  tuples('flows', 60_000n);
  if (ownHost) tuples('own', 600_000n);
}

const onTuple = (family: 4 | 6): nft.Part[] => [nfproto(family), l4proto('tcp'), tuple(family)];
const knownTuple = (table: nft.Table, family: 4 | 6, set: string, reversed = false): nft.Part[] => [
  l4proto('tcp'),
  nfproto(family),
  tuple(family, reversed),
  [table.in(`${set}${family}`)],
];

function prerouting(table: nft.Table, ownHost: boolean, closed: boolean): void {
  table.rule('prerouting', syn, go('syn'));
  table.rule('prerouting', table.protocols('tcp', 'icmp', 'icmpv6'), jump('divert'));
  table.rule('prerouting', table.protocols('udp', 'icmp', 'icmpv6'), nft.socketMark(3, 3), setMark(3, 1), accept);
  if (ownHost) {
    const protocols = table.protocols('tcp', 'udp');
    table.rule('prerouting', iif('eq'), mark(3, 'eq', 2), protocols, tproxy('unspec', 50080), counter, accept);
  }
  for (const [family, name] of [
    [4, 'ip'],
    [6, 'ip6'],
  ] as const)
    table.rule(
      'prerouting',
      ...knownTuple(table, family, 'flows'),
      tproxy(name, 50080),
      setMark(3, 1),
      counter,
      accept,
    );
  if (closed)
    for (const family of [4, 6] as const)
      table.rule('prerouting', ...knownTuple(table, family, 'flows'), counter, drop);
  table.rule('prerouting', l4proto('udp', 'neq'), back);
  table.rule('prerouting', jump('skip'));
  const udp = [iif('neq'), l4proto('udp'), nft.dport, table.in('udp_ports')];
  table.rule('prerouting', ...udp, tproxy('unspec', 50080), setMark(3, 1), counter, accept);
  if (closed) table.rule('prerouting', ...udp, counter, drop);
}

function synChain(table: nft.Table, ownHost: boolean, closed: boolean): void {
  table.rule('syn', socket('wildcard', 0), socket('transparent', 1), setMark(3, 1), accept);
  if (ownHost) table.rule('syn', iif('eq'), mark(3, 'eq', 2), l4proto('tcp'), tproxy('unspec', 50080), counter, accept);
  table.rule('syn', jump('skip'));
  const tcp = [iif('neq'), l4proto('tcp'), nft.dport, table.in('tcp_ports')];
  table.rule('syn', ...tcp, tproxy('unspec', 50080), setMark(3, 1), counter, go('remember'));
  if (closed) table.rule('syn', ...tcp, counter, drop);
}

function skip(table: nft.Table): void {
  const LOCAL = 2;
  const BROADCAST = 3;
  const MULTICAST = 5;
  const types = table.anonymous(
    { keyType: TYPE.fib_addrtype, keyLength: 4 },
    { keyByteorder: 'host', keyExpression: { kind: 'fib', result: 3, flags: 2 } },
    [LOCAL, BROADCAST, MULTICAST].map(nft.host32),
  );
  table.rule('skip', { kind: 'fib', result: 'type', flags: ['daddr'], dreg: 1 }, types, accept);
  for (const [set, offset4, offset6] of [
    ['exclude_to', 16, 24],
    ['exclude_from', 12, 8],
  ] as const) {
    table.rule('skip', nfproto(4), nft.payload('network', offset4, 4), table.in(`${set}4`), accept);
    table.rule('skip', nfproto(6), nft.payload('network', offset6, 16), table.in(`${set}6`), accept);
  }
}

function output(table: nft.Table): void {
  table.rule('output', mark(3, 'neq', 0), back);
  table.rule('output', syn, go('output_syn'));
  for (const family of [4, 6] as const) {
    const remember = [tuple(family), [nft.update(`own${family}`, table.id(`own${family}`))]];
    table.rule('output', ...knownTuple(table, family, 'own'), ...remember, setMark(3, 2), counter, accept);
  }
  table.rule('output', l4proto('udp', 'neq'), back);
  table.rule('output', jump('skip'));
  table.rule('output', l4proto('udp'), nft.dport, table.in('udp_ports'), setMark(3, 2), counter, accept);
  table.rule('output_syn', jump('skip'));
  for (const family of [4, 6] as const) {
    const remember = [tuple(family), [nft.update(`own${family}`, table.id(`own${family}`))]];
    const port = [l4proto('tcp'), [nft.dport, table.in('tcp_ports')]];
    table.rule('output_syn', nfproto(family), ...port, ...remember, setMark(3, 2), counter, accept);
  }
}

function zoneChains(table: nft.Table): void {
  const zone = nft.setZone(84);
  table.rule('zone_prerouting', iif('eq'), back);
  table.rule('zone_prerouting', syn, go('zone_syn'));
  table.rule('zone_prerouting', l4proto('tcp'), nft.socketMark(3, 3), back);
  for (const family of [4, 6] as const)
    table.rule('zone_prerouting', ...knownTuple(table, family, 'flows'), zone, back);
  table.rule('zone_prerouting', l4proto('tcp'), socket('wildcard', 1), back);
  table.rule('zone_prerouting', l4proto('tcp'), socket('transparent', 1), zone);
  table.rule('zone_syn', socket('wildcard', 0), back);
  table.rule('zone_syn', jump('skip'));
  table.rule('zone_syn', iif('neq'), l4proto('tcp'), nft.dport, table.in('tcp_ports'), zone);
  table.rule('zone_output', mark(3, 'eq', 3), back);
  table.rule(
    'zone_output',
    { kind: 'fib', result: 'type', flags: ['daddr'], dreg: 1 },
    nft.cmp('eq', nft.host32(2)),
    back,
  );
  for (const family of [4, 6] as const)
    table.rule('zone_output', ...knownTuple(table, family, 'flows', true), zone, back);
  table.rule('zone_output', l4proto('tcp'), socket('transparent', 1), zone);
}
