/**
 * Transparent sockets and network namespaces: client - router - server over veth, with the classical TPROXY rules in the
 * router, given as text to nft(8) and ip(8). Needs root in a mount and a network namespace of its own.
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readlinkSync } from 'node:fs';
import { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Counter, type NativeFailure, type NativeListenOptions, native } from '../../src/native.js';
import { compiled } from '../helpers/compiled.js';
import { oneUser } from '../helpers/namespaces.js';
import { dial, newCounters, Relays, readAll } from '../helpers/relays.js';
import { testUnless } from '../helpers/skip.js';
import { until, within } from '../helpers/wait.js';

const sockets = suite('sockets');
const test = (what: string, body: () => Promise<void>) => sockets(what, within(100_000, body));
const sh = (script: string) => execFileSync('sh', ['-ec', script], { encoding: 'utf8' });
const opened: number[] = [];

function open(options: Partial<NativeListenOptions>): number {
  const fd = native.openListener({ address: '127.0.0.1', port: 0, backlog: 100, transparent: true, ...options });
  opened.push(fd);
  return fd;
}

/** What `call` failed with. */
function failure(call: () => unknown): Partial<Extract<NativeFailure, { kind: 'socket' }>> {
  try {
    call();
  } catch (error) {
    const { code, syscall, address, port } = error as Extract<NativeFailure, { kind: 'socket' }>;
    return { code, syscall, ...(address !== undefined && { address }), ...(port !== undefined && { port }) };
  }
  throw new Error('nothing was thrown');
}

/** A server in a namespace that tells each peer what address it sees. */
async function whoami(netns: string, ...addresses: string[]): Promise<{ stop(): void }> {
  const script = `
import socket, sys, threading
def serve(address):
    s = socket.create_server((address, 80), family=socket.AF_INET6 if ':' in address else socket.AF_INET)
    print('ready', flush=True)
    while True:
        c, peer = s.accept()
        c.sendall(('%s %d' % peer[:2]).encode())
        c.close()
for address in sys.argv[1:]: threading.Thread(target=serve, args=[address]).start()
`;
  const child = spawn('ip', ['netns', 'exec', netns, 'python3', '-c', script, ...addresses]);
  let ready = 0;
  createInterface(child.stdout).on('line', () => ready++);
  await until(() => ready === addresses.length, 'the servers listen');
  return { stop: () => child.kill() };
}

/** What a client in a namespace hears from an address, and from where it came. */
async function ask(netns: string, address: string, port = 80): Promise<{ heard: string; localPort: string }> {
  const script = `
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
    print(s.getsockname()[1], s.recv(100).decode(), sep='\\n')
except ConnectionResetError:
    print('\\nreset')
`;
  const child = spawn('ip', ['netns', 'exec', netns, 'python3', '-c', script, address, String(port)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const chunks: Buffer[] = [];
  child.stdout.on('data', (chunk) => chunks.push(chunk));
  await once(child, 'close');
  const [localPort, heard] = `${Buffer.concat(chunks)}`.split('\n') as [string, string];
  return { heard, localPort };
}

sockets.before(() => {
  sh(`
    mount -t tmpfs tmpfs /run
    ip link set lo up
    for ns in client router server; do ip netns add $ns; ip -n $ns link set lo up; done
    for peer in client server; do
      ip link add eth0 netns $peer type veth peer name $peer netns router
      ip -n router link set $peer up
      ip -n $peer link set eth0 up
    done
    ip -n router addr add 10.1.0.1/24 dev client; ip -n router addr add fd01::1/64 dev client nodad
    ip -n router addr add 10.2.0.1/24 dev server; ip -n router addr add fd02::1/64 dev server nodad
    ip -n client addr add 10.1.0.2/24 dev eth0;     ip -n client addr add fd01::2/64 dev eth0 nodad
    ip -n server addr add 10.2.0.2/24 dev eth0;     ip -n server addr add fd02::2/64 dev eth0 nodad
    ip -n router addr add fe80::1/64 dev client nodad
    ip -n client route add default via 10.1.0.1;  ip -n client route add default via fd01::1
    ip -n server route add default via 10.2.0.1;  ip -n server route add default via fd02::1
    for family in -4 -6; do
      ip -n router $family rule add fwmark 1 lookup 100
      ip -n router $family route add local default dev lo table 100
    done
    ip netns exec router nft -f - <<'RULES'
    table inet test {
      chain prerouting {
        type filter hook prerouting priority mangle
        tcp dport 80 iifname client tproxy to :50080 meta mark set 1 accept
        meta l4proto tcp socket transparent 1 meta mark set 1 accept
      }
    }
RULES
  `);
});
sockets.after.each(() => {
  for (const fd of opened.splice(0)) native.closeDescriptor(fd);
});

// ---- listeners --------------------------------------------------------------------------------------------------------

test('a foreign address can be listened on, IPv4 and IPv6, and only with IP_TRANSPARENT', async () => {
  assert.equal(native.socketAddress(open({ address: '192.0.2.1', port: 80 })), {
    family: 'ipv4',
    address: '192.0.2.1',
    port: 80,
  });
  assert.equal(native.socketAddress(open({ address: '2001:db8::1', port: 80 })), {
    family: 'ipv6',
    address: '2001:db8::1',
    port: 80,
  });
  for (const address of ['192.0.2.1', '2001:db8::1'])
    assert.equal(
      failure(() => open({ address, port: 81, transparent: false })),
      {
        code: 'EADDRNOTAVAIL',
        syscall: 'bind',
        address,
        port: 81,
      },
    );
});

test('an AF_INET6 wildcard takes IPv4 too, unless it is IPv6 only', async () => {
  const dual = native.socketAddress(open({ address: '::' })).port;
  (await dial(dual)).destroy();
  const only = native.socketAddress(open({ address: '::', v6Only: true })).port;
  assert.is(await dial(only).catch((error) => error.code), 'ECONNREFUSED');
  open({ address: '0.0.0.0', port: only });
});

test('options: reusePort, mark', async () => {
  const { port } = native.socketAddress(open({ reusePort: true, mark: 0x7e }));
  open({ port, reusePort: true });
  assert.equal(
    failure(() => open({ port })),
    { code: 'EADDRINUSE', syscall: 'bind', address: '127.0.0.1', port },
  );
  assert.match(sh(`ss -tlneH sport = :${port}`), /fwmark:0x7e/);
});

test('link-local addresses have a scope, shown by its name in the namespace of the socket', async () => {
  const fd = open({ address: 'fe80::1%client', netns: '/run/netns/router' });
  assert.is(native.socketAddress(fd).address, 'fe80::1%client');
  const index = sh('ip -n router -o link show client').split(':')[0];
  assert.is(
    native.socketAddress(open({ address: `fe80::1%${index}`, netns: '/run/netns/router' })).address,
    'fe80::1%client',
  );
  assert.equal(
    failure(() => open({ address: 'fe80::1%client' })),
    {
      code: 'ENODEV',
      syscall: 'ioctl SIOCGIFINDEX',
      address: 'fe80::1%client',
    },
  );
});

test('what cannot be an address', async () => {
  for (const address of ['localhost', '1.2.3', '1.2.3.4%lo', ''])
    assert.is(failure(() => open({ address })).code, 'EINVAL');
  assert.equal(native.socketAddress(open({ address: '::ffff:127.0.0.1', port: 1 })).family, 'ipv4');
});

test('without capabilities: EPERM names the option, for a listener and for a foreign connect', async () => {
  const script = `
    import { native, Relays } from '${compiled('test/helpers/relays.ts')}';
    const tell = ({ code, syscall }) => console.log(code, syscall);
    try { native.openListener({ address: '127.0.0.1', port: 0, backlog: 1, transparent: true }); } catch (error) { tell(error); }
    const relays = new Relays();
    const connect = async (localAddress) =>
      (await relays.event('failed', relays.thread.connect({ address: '127.0.0.1', port: 1, localAddress }))).failure;
    tell(await connect('192.0.2.1'));
    tell(await connect('127.0.0.2'));
    process.exit(0);
  `;
  const output = execFileSync(
    'setpriv',
    ['--bounding-set', '-all', '--inh-caps', '-all', process.execPath, '--input-type=module', '-e', script],
    { encoding: 'utf8' },
  );
  assert.equal(output.trim().split('\n'), [
    'EPERM setsockopt IP_TRANSPARENT',
    'EPERM setsockopt IP_TRANSPARENT',
    'ECONNREFUSED connect', // an address of this host needs no privilege
  ]);
});

// ---- namespaces -------------------------------------------------------------------------------------------------------

test('a socket is opened in another namespace, and the caller stays in its own', async () => {
  const before = readlinkSync('/proc/thread-self/ns/net');
  const fd = open({ address: '10.1.0.1', port: 4000, transparent: false, netns: '/run/netns/router' });
  assert.is(native.socketAddress(fd).address, '10.1.0.1');
  assert.is(readlinkSync('/proc/thread-self/ns/net'), before);
  assert.match(sh('ip netns exec router ss -tlnH'), /10\.1\.0\.1:4000/);
  assert.not.match(sh('ss -tlnH'), /:4000/);
});

test('a namespace that is not there, or is none', async () => {
  assert.equal(
    failure(() => open({ netns: '/run/netns/nowhere' })),
    {
      code: 'ENOENT',
      syscall: 'open /run/netns/nowhere',
    },
  );
  assert.equal(
    failure(() => open({ netns: '/proc/self/status' })),
    { code: 'EINVAL', syscall: 'setns /proc/self/status' },
  );
  const relays = new Relays({ netns: '/run/netns/nowhere' });
  assert.equal(
    failure(() => relays.thread.connect({ address: '10.2.0.2', port: 80 })),
    {
      code: 'ENOENT',
      syscall: 'open /run/netns/nowhere',
    },
  );
  relays.stop();
});

// ---- connects ---------------------------------------------------------------------------------------------------------

test('a connect from a foreign address: the server sees that address', async () => {
  const server = await whoami('server', '10.2.0.2', 'fd02::2');
  const relays = new Relays({ netns: '/run/netns/router' });
  for (const [address, localAddress] of [
    ['10.2.0.2', '10.1.0.2'],
    ['fd02::2', 'fd01::2'],
  ] as const) {
    const chosen = relays.thread.connect({ address, port: 80, localAddress, mark: 2 });
    const { fd } = await relays.event('connected', chosen);
    const { port } = native.socketAddress(fd);
    assert.is(`${await readAll(new Socket({ fd }))}`, `${localAddress} ${port}`);
    const exact = relays.thread.connect({ address, port: 80, localAddress, localPort: 7777 });
    const kept = await relays.event('connected', exact);
    assert.is(kept.localPortKept, true);
    assert.is(`${await readAll(new Socket({ fd: kept.fd }))}`, `${localAddress} 7777`);
  }
  relays.stop();
  server.stop();
});

test('ports are chosen per destination: ten ports are enough for ten connections to each of two servers', async () => {
  sh(
    'ip -n server addr add 10.2.0.3/24 dev eth0; ip netns exec router sysctl -qw net.ipv4.ip_local_port_range="40000 40009"',
  );
  const server = await whoami('server', '10.2.0.2', '10.2.0.3');
  const relays = new Relays({ netns: '/run/netns/router' });
  const connect = (address: string) => relays.thread.connect({ address, port: 80, localAddress: '10.1.0.2' });
  const held: number[] = [];
  for (const address of ['10.2.0.2', '10.2.0.3'])
    for (let i = 0; i < 10; i++) held.push((await relays.event('connected', connect(address))).fd);
  const one = (await relays.event('failed', connect('10.2.0.2'))).failure as { code: string };
  assert.is(one.code, 'EADDRNOTAVAIL');
  for (const fd of held) native.closeDescriptor(fd);
  sh('ip netns exec router sysctl -qw net.ipv4.ip_local_port_range="32768 60999"');
  relays.stop();
  server.stop();
});

// ---- the relay as it is meant ---------------------------------------------------------------------------------------------

for (const from of ['client', 'proxy'] as const)
  test(`intercepted connections go to their destination from the address of the ${from}`, async () => {
    const server = await whoami('server', '10.2.0.2', 'fd02::2');
    const relays = new Relays({ netns: '/run/netns/router' });
    const counters = newCounters();
    const fd = native.openListener({
      address: '::',
      port: 50080,
      backlog: 100,
      transparent: true,
      netns: '/run/netns/router',
    });
    const id = relays.thread.accept({ fd, decide: false, engine: 'epoll', upstream: { from, mark: 2 }, counters });
    const addresses = from === 'client' ? ['10.1.0.2', 'fd01::2'] : ['10.2.0.1', 'fd02::1'];
    assert.match((await ask('client', '10.2.0.2')).heard, `${addresses[0]} `);
    assert.match((await ask('client', 'fd02::2')).heard, `${addresses[1]} `);
    await until(() => counters[Counter.connectionsOpen] === 0n, 'both have ended');
    assert.is(counters[Counter.connectionsTotal], 2n);
    assert.is(relays.events.length, 0);
    // Who speaks to the listener itself is not relayed in a circle.
    assert.is((await ask('client', '10.1.0.1', 50080)).heard, 'reset');
    assert.is(counters[Counter.connectErrors], 1n);
    relays.thread.stopAccepting(id);
    await relays.event('closed', id);
    relays.stop();
    server.stop();
  });

test('a flow tells the original destination, and its own port may be kept towards the server', async () => {
  const server = await whoami('server', '10.2.0.2', 'fd02::2');
  const relays = new Relays({ netns: '/run/netns/router' });
  const fd = native.openListener({
    address: '::',
    port: 50080,
    backlog: 100,
    transparent: true,
    netns: '/run/netns/router',
  });
  relays.thread.accept({ fd, decide: true, engine: 'epoll', upstream: { from: 'client' }, counters: newCounters() });
  relays.onFlow = ({ id, source, originalDestination: { address, port } }) =>
    relays.thread.decide(id, {
      kind: 'relay',
      engine: 'epoll',
      address,
      port,
      localAddress: source.address,
      localPort: source.port,
    });
  for (const [address, client] of [
    ['10.2.0.2', '10.1.0.2'],
    ['fd02::2', 'fd01::2'],
  ] as const) {
    relays.events.length = 0;
    const { heard, localPort } = await ask('client', address);
    assert.is(heard, `${client} ${localPort}`);
    const { source, originalDestination } = await relays.event('flow');
    assert.equal([source.address, `${source.port}`], [client, localPort]);
    assert.equal([originalDestination.address, originalDestination.port], [address, 80]);
  }
  relays.stop();
  server.stop();
});

// ---- REDIRECT ---------------------------------------------------------------------------------------------------------

test('conntrack knows the destination before a REDIRECT', async () => {
  const relays = new Relays();
  const { port } = relays.listen(() => ({ kind: 'socket' }), { address: '::' });
  sh(
    `nft 'table inet redirected { chain output { type nat hook output priority -100; tcp dport 999 redirect to :${port}; }; }'`,
  );
  for (const address of ['127.0.0.7', '::1']) {
    relays.events.length = 0;
    const client = new Socket().connect(999, address);
    await once(client, 'connect');
    const { fd } = await relays.event('socket');
    const family = address === '::1' ? 'ipv6' : 'ipv4';
    assert.equal(native.originalDestination(fd), { family, address, port: 999, from: 'conntrack' });
    native.closeDescriptor(fd);
    client.destroy();
  }
  sh('nft delete table inet redirected');
  relays.stop();
});

test('where nothing was rewritten, or conntrack knows the connection the wrong way round, the socket itself knows it', async () => {
  const relays = new Relays();
  const { port } = relays.listen(() => ({ kind: 'socket' }), { address: '::' });
  const ask = async (address: string) => {
    relays.events.length = 0;
    const client = new Socket().connect(port, address);
    await once(client, 'connect');
    const { fd } = await relays.event('socket');
    const family = address === '::1' ? 'ipv6' : 'ipv4';
    assert.equal(native.originalDestination(fd), { family, address, port, from: 'sockname' });
    native.closeDescriptor(fd);
    client.destroy();
  };
  for (const address of ['127.0.0.7', '::1']) await ask(address);
  // conntrack runs, and sees the answers only.
  sh(`nft 'table inet answers {
    chain output { type filter hook output priority raw; tcp dport ${port} notrack; }
    chain prerouting { type filter hook prerouting priority raw; tcp dport ${port} notrack; }
    chain input { type filter hook input priority 0; ct state invalid counter; }
  }'`);
  for (const address of ['127.0.0.7', '::1']) await ask(address);
  sh('nft delete table inet answers');
  relays.stop();
});

// ---- the broker -------------------------------------------------------------------------------------------------------

const noUsers = oneUser && 'a user namespace made without root has one user only';
const brokered = 'a broker opens what this process may not: any address, port and mark; it ends with it';
const asNobody = async () => {
  const server = await whoami('server', '10.2.0.2', 'fd02::2');
  const script = `
    import { native, Relays, readAll } from '${compiled('test/helpers/relays.ts')}';
    import { Socket } from 'node:net';
    const relays = new Relays({ netns: '/run/netns/router' });
    relays.thread.startBroker();
    process.setgid(65534); process.setuid(65534);
    const connect = async (options) => {
      relays.events.length = 0;
      const id = relays.thread.connect({ port: 80, mark: 2, ...options });
      const { fd } = await Promise.race([relays.event('connected', id), relays.event('failed', id).then(({ failure }) => { throw failure; })]);
      return readAll(new Socket({ fd }));
    };
    for (const [address, localAddress] of [['10.2.0.2', '10.1.0.2'], ['fd02::2', 'fd01::2']]) {
      console.log(String(await connect({ address, localAddress, localPort: 77 })));
      console.log(String(await connect({ address, localAddress })).split(' ')[0]);
      console.log(String(await connect({ address })).split(' ')[0]); // the mark alone
    }
    const tell = ({ code, syscall, address, port }) => console.log(code, syscall, address, port);
    await connect({ address: '10.2.0.2', localAddress: '224.0.0.1' }).catch(tell);
    await connect({ address: '10.2.0.2', localAddress: '10.1.0.2', localPort: 50080 }).catch(tell);
    relays.thread.stopBroker();
    await connect({ address: '10.2.0.2', localAddress: '10.1.0.2' }).catch(tell);
    process.exit(0);
  `;
  const busy = open({ address: '0.0.0.0', port: 50080, netns: '/run/netns/router' });
  assert.ok(busy);
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const chunks: Buffer[] = [];
  child.stdout.on('data', (chunk) => chunks.push(chunk));
  await once(child, 'close');
  assert.equal(`${Buffer.concat(chunks)}`.trim().split('\n'), [
    ...['10.1.0.2 77', '10.1.0.2', '10.2.0.1', 'fd01::2 77', 'fd01::2', 'fd02::1'],
    'EINVAL broker 224.0.0.1 0',
    'EADDRINUSE bind 10.1.0.2 50080',
    'EPERM setsockopt SO_MARK undefined undefined',
  ]);
  await until(() => !sh('ps -e -o args=').includes('linux-tproxy-broker'), 'the broker has ended');
  server.stop();
};
testUnless(noUsers, sockets, brokered, within(100_000, asNobody));

sockets.run();
