/**
 * Captures the golden fixtures anew: runs the commands below in fresh network namespaces under strace and writes down
 * the bytes of the netlink messages with which they change something.
 *
 *     node --import tsx test/golden/capture.ts [fixture...]
 *
 * Needs root (or run it under `unshare -Urn`), ip, nft, iptables and strace. What differs afterwards differs in the tools.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { directory, format, type Sent, split, withoutPadding } from './fixture.js';
import { iptablesTexts, texts } from './plans.js';

interface Capture {
  /** Shell commands that are not captured, before each captured one. */
  readonly setup: readonly string[];
  readonly commands: readonly string[];
  /** What is asked for need not be there: the bytes are the same when the kernel refuses them. */
  readonly mayBeRefused?: true;
  /** Not what it changes, but what it asks for by name. */
  readonly asks?: true;
}

const captures: Record<string, Capture> = {
  rules: {
    // A rule to delete has to exist.
    setup: [
      'ip -4 rule add iif lo fwmark 0x1/0x3 goto 101 pref 98 protocol 84',
      'ip -6 rule add fwmark 0x1/0x3 nop pref 101 protocol 84',
      'ip -4 rule add pref 5 lookup 100',
    ],
    commands: [
      'ip -4 rule add iif lo fwmark 0x2/0x3 lookup 100 pref 97 protocol 84',
      'ip -6 rule add iif lo fwmark 0x2/0x3 lookup 100 pref 97 protocol 84',
      'ip -4 rule add iif lo fwmark 0x1/0x3 goto 101 pref 99 protocol 84',
      'ip -6 rule add iif lo fwmark 0x1/0x3 goto 101 pref 99 protocol 84',
      'ip -4 rule add fwmark 0x1/0x3 lookup 100 pref 100 protocol 84',
      'ip -6 rule add fwmark 0x1/0x3 lookup 100 pref 100 protocol 84',
      'ip -4 rule add fwmark 0x1/0x3 nop pref 102 protocol 84',
      'ip -6 rule add fwmark 0x1/0x3 nop pref 102 protocol 84',
      'ip -4 rule add from 10.0.0.0/8 to 192.0.2.1 iif lo oif eth0 tos 0x10 lookup 1000 pref 7',
      'ip -6 rule add from 2001:db8::/32 to 2001:db8::1 lookup 1000 pref 7',
      'ip -4 rule add ipproto tcp sport 1-10 dport 80 uidrange 0-1000 lookup 254',
      'ip -6 rule add ipproto udp dport 53 lookup 4294967295',
      'ip -4 rule add not fwmark 0xca6c/0xffffffff lookup 51820',
      'ip -4 rule add lookup 254 suppress_prefixlength 0',
      'ip -4 rule add blackhole',
      'ip -6 rule add from 2001:db8::/32 prohibit',
      'ip -4 rule add to 10.0.0.0/8 unreachable',
      'ip -6 rule add l3mdev',
      'ip -4 rule del iif lo fwmark 0x1/0x3 goto 101 pref 98 protocol 84',
      'ip -6 rule del fwmark 0x1/0x3 nop pref 101 protocol 84',
      'ip -4 rule del lookup 100 pref 5',
    ],
  },
  routes: {
    setup: [
      'ip link set lo up',
      'ip link add eth0 index 5 type veth peer name eth1',
      'ip link set eth0 up',
      'ip link set eth1 up',
      'ip address add 10.1.0.1/24 dev eth0',
      'ip -4 route add local default dev lo table 101 protocol 84',
      'ip -6 route add local default dev lo table 101 protocol 84',
      'ip -4 route add 10.6.0.0/16 dev eth0',
    ],
    commands: [
      'ip -4 route add local default dev lo table 100 protocol 84',
      'ip -6 route add local default dev lo table 100 protocol 84',
      'ip -4 route add local 10.0.0.0/8 dev lo table 1000',
      'ip -4 route add blackhole 10.9.0.0/16',
      'ip -6 route add blackhole 2001:db8::/32',
      'ip -4 route add unreachable default metric 4278198272',
      'ip -4 route add prohibit 10.10.0.0/16 table 200',
      'ip -4 route add throw 10.11.0.0/16 table 200',
      'ip -4 route add 10.7.0.0/16 dev eth0',
      'ip -4 route add 10.7.1.1 scope host dev eth0',
      'ip -4 route add 10.8.0.0/16 via 10.1.0.2 src 10.1.0.1 metric 5 table 300 dev eth0',
      'ip -6 route add 2001:db9::/32 via fe80::1 metric 7 dev eth0',
      'ip -4 route add 10.12.0.0/16 nexthop via 10.1.0.2 dev eth0 weight 3 nexthop dev eth0',
      'ip -6 route add 2001:dba::/32 table 300 nexthop via fe80::1 dev eth0 weight 256 nexthop via fe80::2 dev eth0',
      'ip -4 route replace 10.6.0.0/16 dev eth0 metric 3',
      'ip -4 route del local default dev lo table 101 protocol 84',
      'ip -6 route del local default dev lo table 101 protocol 84',
      'ip -4 route del unicast 10.6.0.0/16 dev eth0',
    ],
  },
  addresses: {
    setup: [
      'ip link add eth0 index 5 type veth peer name eth1',
      'ip address add 10.1.0.1/24 dev eth0',
      'ip -6 address add 2001:db8:1::1/64 dev eth0',
    ],
    commands: [
      'ip address add 10.2.0.1/24 dev eth0',
      'ip address add 10.2.0.1/24 broadcast 10.2.0.255 dev eth0 scope link',
      'ip address add 10.2.0.1 peer 10.3.0.1/24 dev eth0',
      'ip -6 address add 2001:db8:2::1/64 dev eth0 nodad',
      'ip -6 address add 2001:db8:2::1/64 dev eth0 noprefixroute',
      'ip address replace 10.1.0.1/24 dev eth0',
      'ip address del 10.1.0.1/24 dev eth0',
      'ip -6 address del 2001:db8:1::1/64 dev eth0',
    ],
  },
  queries: {
    setup: [
      'ip link set lo up',
      'ip link add eth0 index 5 type veth peer name eth1',
      'ip link set eth0 up',
      'ip link set eth1 up',
      'ip address add 10.1.0.1/24 dev eth0',
      'ip -6 address add 2001:db8:1::1/64 dev eth0 nodad',
      'ip route add default via 10.1.0.2',
    ],
    commands: [
      'ip route get 192.0.2.1',
      'ip route get 10.1.0.1 from 10.1.0.3 iif eth0',
      'ip route get 192.0.2.1 from 10.1.0.1 uid 0 oif eth0 mark 0x5',
      'ip -6 route get 2001:db8:1::2 from 2001:db8:1::1 oif eth0',
    ],
  },
  links: {
    setup: [
      'ip link add eth0 index 5 type veth peer name eth1',
      'ip link set eth1 up',
      'ip link add br0 index 7 type bridge',
    ],
    commands: [
      'ip link set eth0 up',
      'ip link set eth0 down',
      'ip link set eth0 mtu 1400 master br0',
      'ip link set eth0 nomaster',
      'ip link set eth0 address 02:00:00:00:00:02 name lan0',
      'ip link set eth0 netns 4194303',
      'ip link add veth0 mtu 1400 type veth peer name veth1 mtu 1300',
      'ip link add veth0 up index 9 type veth peer address 02:00:00:00:00:03 netns 4194303 name veth1',
      'ip link add veth2 type veth',
      'ip link add br1 address 02:00:00:00:00:01 type bridge',
      'ip link add br1 type bridge forward_delay 400 ageing_time 1000 stp_state 1 priority 4096 vlan_filtering 1 mcast_snooping 0',
      'ip link add link eth0 name eth0.5 type vlan id 5',
      'ip link add link eth0 name eth0.5 master br0 type vlan protocol 802.1ad id 5',
      'ip link add dummy0 type dummy',
      'ip link add ifb7 type ifb',
      'ip link add link eth0 name mac0 type macvlan mode bridge',
      'ip link add vxlan0 type vxlan id 7 dstport 4789',
      'ip link del eth0',
    ],
    mayBeRefused: true,
  },
  intercept: { setup: [], commands: ['nft -f test/golden/nft/intercept.nft'] },
  'own-host': { setup: [], commands: ['nft -f test/golden/nft/own-host.nft'] },
  everything: { setup: [], commands: ['nft -f test/golden/nft/everything.nft'] },
  sets: { setup: [], commands: ['nft -f test/golden/nft/sets.nft'] },
  expressions: { setup: [], commands: ['nft -f test/golden/nft/expressions.nft'] },
  operations: {
    setup: [
      'nft add table inet x',
      'nft add chain inet x c',
      'nft add rule inet x c accept',
      "nft 'add set inet x s { type inet_service; flags interval; }'",
      "nft 'add element inet x s { 80, 90-100 }'",
      'nft add counter inet x web',
    ],
    commands: [
      "nft 'add counter inet x hits { packets 3 bytes 4 ; }'",
      'nft create counter inet x hits',
      'nft add rule inet x c counter name web',
      "nft 'add table inet y { flags dormant; }'",
      'nft create table inet y',
      'nft create chain inet x d',
      'nft insert rule inet x c accept',
      'nft add rule inet x c position 2 accept',
      'nft delete rule inet x c handle 2',
      'nft flush chain inet x c',
      'nft flush table inet x',
      'nft flush set inet x s',
      "nft 'delete element inet x s { 80, 90-100 }'",
      'nft delete set inet x s',
      "nft 'flush chain inet x c; delete chain inet x c'",
      'nft delete table inet x',
    ],
  },
  gets: {
    setup: [
      'nft add table inet x',
      'nft add chain inet x c',
      "nft 'add set inet x ports { type inet_service; flags interval; elements = { 80, 90-100 } }'",
      "nft 'add set inet x hosts { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 } }'",
      "nft 'add set inet x both { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/24 . 80-90 } }'",
    ],
    commands: [
      'nft list table inet x',
      'nft list chain inet x c',
      'nft list set inet x hosts',
      "nft 'get element inet x hosts { 10.0.0.1, 10.0.0.2 }'",
      "nft 'get element inet x ports { 80, 95 }'",
      "nft 'get element inet x ports { 90-100 }'",
      "nft 'get element inet x both { 10.0.0.7 . 85 }'",
      "nft 'get element inet x both { 10.0.0.0/24 . 80-90 }'",
    ],
    asks: true,
  },
};

for (const { name, text } of texts) {
  captures[name] = { setup: [], commands: [`nft -f test/golden/nft/${name}.nft`] };
  writeFileSync(new URL(`nft/${name}.nft`, import.meta.url), text);
}

for (const { name, command, text } of iptablesTexts) {
  captures[name] = { setup: [], commands: [command] };
  writeFileSync(new URL(`iptables/${name}.txt`, import.meta.url), text);
}

const NFNL_SUBSYS_NFTABLES = 10;
const NFNL_MSG_BATCH_BEGIN = 0x10;
const RTM_CHANGES = [16, 17, 20, 21, 24, 25, 32, 33]; // NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWRULE, DELRULE
const RTM_GETROUTE = 26; // of which only questions are captured, not dumps
const NFT_GETS = [1, 4, 7, 10, 13, 19]; // GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETOBJ
const NLM_F_DUMP = 0x300;

/** What `command` sends, one entry for each datagram. `-e write` dumps the bytes of everything written to those descriptors. */
function datagrams({ setup, mayBeRefused }: Capture, command: string): Buffer[] {
  const work = mkdtempSync(join(tmpdir(), 'capture-'));
  try {
    const trace = join(work, 'trace');
    const strace = `strace -o ${trace} -xx -s 1000000 -e trace=sendto,sendmsg -e write=3,4,5,6,7`;
    const script = [...setup, `exec ${strace} ${command}`].join('\n');
    const run = spawnSync('unshare', ['-n', 'sh', '-ec', script], { encoding: 'utf8' });
    if (run.status !== 0 && !mayBeRefused) throw new Error(`${command}: exit ${run.status}: ${run.stderr}`);
    const sent: string[] = [];
    for (const line of readFileSync(trace, 'utf8').split('\n')) {
      if (/^send(to|msg)\(/.test(line)) sent.push('');
      else if (line.startsWith(' | ')) sent.push((sent.pop() ?? '') + line.slice(9, 58).replaceAll(/[^0-9a-f]/g, ''));
    }
    return sent.map((hex) => Buffer.from(hex, 'hex'));
  } finally {
    rmSync(work, { recursive: true });
  }
}

function changes(datagram: Buffer): boolean {
  const type = datagram.length >= 16 ? datagram.readUInt16LE(4) : 0;
  const asks = type === RTM_GETROUTE && (datagram.readUInt16LE(6) & NLM_F_DUMP) === 0;
  return asks || type === NFNL_MSG_BATCH_BEGIN || RTM_CHANGES.includes(type);
}

function asks(datagram: Buffer): boolean {
  const [type, flags] = [datagram.readUInt16LE(4), datagram.readUInt16LE(6)];
  return type >> 8 === NFNL_SUBSYS_NFTABLES && NFT_GETS.includes(type & 0xff) && (flags & NLM_F_DUMP) === 0;
}

const wanted = process.argv.slice(2);
for (const [name, capture] of Object.entries(captures)) {
  const { setup, commands } = capture;
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const sent: Sent[] = commands.map((command) => ({
    command,
    messages: datagrams(capture, command)
      .filter(capture.asks ? asks : changes)
      .flatMap(split)
      .map((message) => (capture.asks ? withoutPadding(message) : message)),
  }));
  const tool = commands[0]?.split(' ')[0] ?? '';
  const header = [
    `node --import tsx test/golden/capture.ts ${name}`,
    execFileSync(tool, [tool === 'nft' ? '-v' : '-V'], { encoding: 'utf8' }).trim(),
    `kernel ${execFileSync('uname', ['-rm'], { encoding: 'utf8' }).trim()}`,
    ...(setup.length > 0
      ? ['', 'In a fresh network namespace, before each command:', ...setup.map((s) => `    ${s}`)]
      : []),
  ];
  for (const command of commands) {
    const file = /(?:nft -f|--noflush) (\S+)/.exec(command)?.[1];
    if (file) header.push('', ...readFileSync(file, 'utf8').trimEnd().split('\n'));
  }
  writeFileSync(new URL(`${name}.txt`, directory), format(header, sent));
  console.log(`${name}: ${sent.length} commands, ${sent.reduce((n, s) => n + s.messages.length, 0)} messages`);
}
