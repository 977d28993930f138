/** connectTransparent: every errno that users meet, provoked, with its remedy; source ports; a client on this very host. */
import { execFileSync } from 'node:child_process';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  connectTransparent,
  createTransparentServer,
  type Relay,
  type RelayDecision,
  type SocketError,
  type TransparentConnection,
} from '../../src/index.js';
import { native } from '../../src/native.js';
import { compiled } from '../helpers/compiled.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { install, start, stop, stopAll } from '../helpers/proxies.js';
import { ask, dial, greet } from '../helpers/talk.js';

const test = suite('connect');
let lab: Lab;
let netns: string;
const open: TransparentConnection[] = [];
test.before(async () => {
  lab = await createLab({ moreAddresses: { server: ['198.51.100.1', '2001:db8::1'] } });
  netns = lab.netns('router');
  for (const port of [80, 81]) await greet(lab, 'server', 'server', port);
  await install(lab, { name: 'divert' });
  lab.exec('server', 'nft', 'table inet x { chain c { type filter hook input priority 0; tcp dport 99 drop; }; }');
});
test.after.each(() => {
  for (const socket of open.splice(0)) socket.destroy();
});
test.after(async () => {
  await stopAll();
  await lab.dispose();
});

type Options = Partial<Parameters<typeof connectTransparent>[0]>;
for (const family of ['ipv4', 'ipv6'] as const) {
  const target = addresses.server[family];
  const client = addresses.client[family];
  const connect = async (options: Options = {}) => {
    const socket = await connectTransparent({ address: target, port: 80, localAddress: client, netns, ...options });
    open.push(socket.on('error', () => {}));
    return socket;
  };
  const refusal = (options: Options = {}): Promise<SocketError> =>
    connect(options).then(
      () => assert.unreachable('it connected'),
      (error) => error,
    );
  const router = (...command: [string, ...string[]]) => lab.exec('router', ...command);
  const ip = family === 'ipv4' ? '-4' : '-6';

  test(`${family}: EADDRNOTAVAIL: the wanted port has such a connection; all ports have one`, async () => {
    const first = await connect({ localPort: 7001 });
    assert.is(first.localPortKept, true);
    const same = await refusal({ localPort: 7001 });
    assert.equal([same.code, same.syscall], ['EADDRNOTAVAIL', 'connect']);
    assert.match(same.message, /in use by the same pair/);
    const other = await connect({ localPort: 7001, port: 81 });
    assert.is(other.localPort, 7001, 'to another destination the port is free');
    router('sysctl', '-qw', 'net.ipv4.ip_local_port_range=42000 42003');
    for (let count = 0; count < 4; count++) await connect();
    const full = await refusal();
    assert.is(full.code, 'EADDRNOTAVAIL');
    assert.match(full.message, 'net.ipv4.ip_local_port_range');
    await connect({ port: 81 });
    router('sysctl', '-qw', 'net.ipv4.ip_local_port_range=32768 60999');
  });

  test(`${family}: EADDRINUSE: somebody listens on the wanted port; prefer takes another, and says so`, async () => {
    const fd = native.openListener({ address: '::', port: 7002, backlog: 1, transparent: false, netns });
    const busy = await refusal({ localPort: 7002 });
    assert.equal([busy.code, busy.syscall, busy.address, busy.port], ['EADDRINUSE', 'bind', client, 7002]);
    assert.match(busy.message, /sport = :7002.*'prefer'/);
    const preferring = await connect({ localPort: 7002, sourcePort: 'prefer' });
    assert.is(preferring.localPortKept, false);
    assert.is.not(preferring.localPort, 7002);
    assert.is((await connect()).localPortKept, undefined);
    native.closeDescriptor(fd);
  });

  test(`${family}: ENETUNREACH, EHOSTUNREACH, EACCES: what the routes say`, async () => {
    const nowhere = family === 'ipv4' ? '203.0.113.1' : '2001:db8:ffff::1';
    const unreachable = await refusal({ address: nowhere });
    assert.is(unreachable.code, 'ENETUNREACH');
    assert.match(unreachable.message, `ip route get ${nowhere}`);
    for (const [type, code, remedy] of [
      ['unreachable', 'EHOSTUNREACH', /`ip neigh`/],
      ['prohibit', 'EACCES', /prohibit/],
    ] as const) {
      router('ip', ip, 'route', 'add', type, nowhere);
      const error = await refusal({ address: nowhere });
      assert.equal([error.code, error.syscall], [code, 'connect']);
      assert.match(error.message, remedy);
      router('ip', ip, 'route', 'del', type, nowhere);
    }
    // Nobody on the link has the address.
    const absent = family === 'ipv4' ? '10.77.2.99' : 'fd77:2::99';
    const ofOurs = await connectTransparent({ address: absent, port: 80, netns, timeoutMs: 10_000 }).catch(
      (error) => error,
    );
    assert.is(ofOurs.code, 'EHOSTUNREACH');
    // Of a foreign address the kernel tells whom that belongs to, and not us.
    assert.is((await refusal({ address: absent, timeoutMs: 4000 })).code, 'ETIMEDOUT');
  });

  test(`${family}: ECONNREFUSED, ETIMEDOUT, and a signal that says stop`, async () => {
    assert.is((await refusal({ port: 9 })).code, 'ECONNREFUSED');
    const late = await refusal({ port: 99, timeoutMs: 100 });
    assert.is(late.code, 'ETIMEDOUT');
    assert.match(late.message, 'intercept: {}');
    const stopped = new AbortController();
    const waiting = refusal({ port: 99, signal: stopped.signal });
    stopped.abort(new Error('enough'));
    assert.is((await waiting).message, 'enough');
    assert.is((await refusal({ signal: stopped.signal })).message, 'enough');
  });

  test(`${family}: a client on this very host: its own port cannot be had, prefer falls back`, async () => {
    for (const [sourcePort, who] of [
      ['ephemeral', 'server'],
      ['prefer', 'server'],
      ['preserve', 'ECONNRESET'],
    ] as const) {
      const server = await start(
        createTransparentServer({
          intercept: { tcp: [80], ownHost: true },
          netns,
          relay: (): RelayDecision => ({ kind: 'relay', sourcePort }),
        }),
      );
      assert.is(await ask(lab, 'router', target, 80), who, sourcePort);
      if (sourcePort === 'preserve') {
        const relayed = new Promise<SocketError>((resolve) => {
          server.on('relay', async (relay) => resolve((await relay.closed).error as SocketError));
        });
        await ask(lab, 'router', target, 80);
        assert.match((await relayed).code, /^EADDR(INUSE|NOTAVAIL)$/);
      } else {
        const relaying = new Promise<Relay>((resolve) => {
          server.on('relay', resolve);
        });
        const call = await dial(lab, 'router', target, 80);
        assert.is((await relaying).localPortKept, sourcePort === 'prefer' ? false : undefined);
        assert.is(call.sawAddress, addresses.routerUpstream[family]);
        assert.is.not(call.sawPort, call.socket.localPort);
        await call.hangUp();
      }
      await stop(server);
    }
  });
}

test('EPERM: without the capability, and what gives it', () => {
  const script = `
    import { connectTransparent } from '${compiled('src/index.ts')}';
    for (const options of [{ localAddress: '${addresses.client.ipv4}' }, { mark: 1 }])
      await connectTransparent({ address: '${addresses.server.ipv4}', port: 80, ...options }).catch((error) => console.log(error.message));
    process.exit(0);`;
  const program = ['--input-type=module', '--eval', script];
  const told = execFileSync(
    'nsenter',
    [`--net=${netns}`, 'setpriv', '--bounding-set=-all', '--inh-caps=-all', process.execPath, ...program],
    { encoding: 'utf8' },
  );
  const lines = told.trim().split('\n');
  assert.is(lines.length, 2);
  for (const line of lines) assert.match(line, /EPERM.*AmbientCapabilities=CAP_NET_ADMIN/);
});

test.run();
