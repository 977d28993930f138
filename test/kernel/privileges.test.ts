/** As few privileges as it needs: one capability, none with a socket from systemd, and those that are given up later. */
import { execFileSync } from 'node:child_process';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createTransparentServer, installIntercept } from '../../src/index.js';
import { compiled } from '../helpers/compiled.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { oneUser } from '../helpers/namespaces.js';
import { testUnless } from '../helpers/skip.js';
import { ask, dial, greet } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';

const test = suite('privileges');
const families = ['ipv4', 'ipv6'] as const;
const noUsers = oneUser && 'a user namespace made without root has one user only';
const nobody = oneUser ? [] : ['--reuid=65534', '--regid=65534', '--clear-groups'];
const path = (name: string) => new URL(`../helpers/${name}`, import.meta.url).pathname;
const CAP_NET_ADMIN = 2 ** 12;
let lab: Lab;
let before: string;

test.before(async () => {
  lab = await createLab();
  await greet(lab, 'server', 'server', 80);
  before = lab.snapshot('router');
});
test.after(() => lab.dispose());

/** `around`: the command line that gives it its privileges. */
async function service(around: readonly string[], options: object): Promise<Program> {
  const [file = '', ...args] = [
    ...around,
    ...[process.execPath, compiled('test/helpers/service.ts'), JSON.stringify(options)],
  ];
  const program = lab.spawn('router', file, ...args);
  await program.until(/^(done|error)/m);
  return program;
}

const connects = families.map((family) => ({
  address: addresses.server[family],
  port: 80,
  localAddress: addresses.client[family],
}));
const heard = (program: Program) => program.output().match(/^(heard|failed) .*/gm) ?? [];

async function relays(from: 'client' | 'routerUpstream' = 'client'): Promise<void> {
  for (const family of families) {
    const call = await dial(lab, 'client', addresses.server[family], 80);
    assert.equal([call.who, call.sawAddress], ['server', addresses[from][family]]);
    await call.echo('x'.repeat(100_000));
    assert.is.not(call.sawPort, call.socket.localPort, 'there are two connections');
    await call.hangUp();
  }
}

const children = () =>
  execFileSync('ps', ['-e', '-o', 'args='], { encoding: 'utf8' }).match(/^linux-tproxy-(guard|broker).*/gm) ?? [];
/** How long that takes is in guard.test.ts. */
async function cleanedUp(): Promise<void> {
  await until(() => lab.snapshot('router') === before, 'the router is as it was');
  await until(() => children().length === 0, 'no child is left');
}

// ---- one capability -----------------------------------------------------------------------------------------------------

test('CAP_NET_ADMIN alone, not root: rules, listener, foreign connects, relay; and everything goes', async () => {
  const admin = ['--inh-caps=-all,+net_admin', '--ambient-caps=-all,+net_admin', '--bounding-set=-all,+net_admin'];
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const program = await service(['setpriv', ...nobody, ...admin, '--no-new-privs'], {
      server: { intercept: { tcp: [80] } },
      listen: { port: 50080 },
      connect: connects,
    });
    assert.match(program.output(), `ready with capabilities ${CAP_NET_ADMIN}`);
    assert.equal(
      heard(program).map((line) => line.split(' ').slice(0, 3).join(' ')),
      families.map((family) => `heard server ${addresses.client[family]}`),
    );
    await relays();
    await program.stop(signal);
    await cleanedUp();
  }
});

test('without any: the error names what is missing', async () => {
  const none = ['--inh-caps=-all', '--bounding-set=-all'];
  const program = await service(['setpriv', ...nobody, ...none], { server: {}, listen: { port: 50080 } });
  assert.match(program.output(), /error .*IP_TRANSPARENT: EPERM.*AmbientCapabilities=CAP_NET_ADMIN/);
  await program.stop();
});

// ---- given up later -------------------------------------------------------------------------------------------------------

testUnless(noUsers, test, 'given up at listening: a broker connects for relays and connectTransparent', async () => {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const program = await service([], {
      server: { intercept: { tcp: [80] }, privileges: 'broker' },
      listen: { port: 50080 },
      drop: true,
      connect: connects.map((each) => ({ ...each, localPort: 20 })),
    });
    assert.match(program.output(), /^ready with capabilities 0$/m);
    assert.equal(
      heard(program),
      families.map((family) => `heard server ${addresses.client[family]} 20`),
    );
    const broker = /^\s*(\d+) (.*linux-tproxy-broker.*)$/m.exec(
      execFileSync('ps', ['-e', '-o', 'pid=,args='], { encoding: 'utf8' }),
    );
    const status = execFileSync('cat', [`/proc/${broker?.[1]}/status`], { encoding: 'utf8' });
    assert.match(status, /^Uid:\s+65534\s+65534\s+65534/m);
    // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW
    assert.match(status, /^CapPrm:\s+0000000000003400$/m);
    assert.match(status, /^NoNewPrivs:\s+1$/m);
    await relays();
    await program.stop(signal);
    if (signal === 'SIGTERM') assert.not.match(program.output(), /^error/m, program.output());
    await cleanedUp();
  }
});

testUnless(noUsers, test, 'given up without a broker: connections are refused, with the reason', async () => {
  const program = await service([], {
    server: { intercept: { tcp: [80] } },
    listen: { port: 50080 },
    drop: true,
    connect: connects.slice(0, 1),
  });
  assert.match(heard(program)[0] ?? '', /^failed .*EPERM/);
  assert.is(await ask(lab, 'client', addresses.server.ipv4, 80), 'ECONNRESET');
  await program.stop();
  await cleanedUp();
});

// ---- systemd --------------------------------------------------------------------------------------------------------------

type Passed = { readonly name: string; readonly transparent?: boolean; readonly type?: string };
const passing = (...sockets: Passed[]) => [
  'env',
  ...(oneUser ? [] : ['AS_NOBODY=1']),
  'python3',
  path('listen_fds.py'),
  JSON.stringify(sockets),
];
const proxy = { name: 'proxy', transparent: true };

test('a socket from systemd: no capability, and again after a close', async () => {
  await using _rules = await installIntercept({ port: 50080, tcp: [80], netns: lab.netns('router') });
  for (const systemd of ['proxy', true]) {
    const program = await service(passing(proxy), { server: {}, from: 'proxy', listen: { systemd } });
    assert.match(program.output(), /^ready with capabilities 0$/m);
    await relays('routerUpstream');
    program.process.kill('SIGHUP');
    await program.until(/closed\nready/);
    await relays('routerUpstream');
    assert.is(await program.stop(), 0);
  }
});

test('what cannot be taken is refused, and it is said why', async () => {
  const cases: [Passed[], string | true, RegExp][] = [
    [[{ name: 'proxy' }], 'proxy', /'proxy' .* not transparent: add Transparent=yes/],
    [[proxy], 'other', /passed 0 sockets of the name 'other', and one is needed \(there are: proxy\)/],
    [[proxy, proxy], 'proxy', /passed 2 sockets of the name 'proxy'/],
    [[proxy, { ...proxy, name: 'b' }], true, /passed 2 sockets, and one/],
    [[{ ...proxy, type: 'SOCK_DGRAM' }], 'proxy', /SO_ACCEPTCONN/],
  ];
  for (const [sockets, systemd, message] of cases) {
    const program = await service(passing(...sockets), { server: {}, listen: { systemd } });
    assert.match(program.output(), message);
    await program.stop();
  }
  const other = await service(['env', 'LISTEN_PID=1', ...passing(proxy).slice(1)], { listen: { systemd: true } });
  assert.match(other.output(), /to process 1, and this is \d+: ExecStart= must start node itself/);
  await other.stop();
  const [error] = await new Promise<[Error]>((resolve) => {
    createTransparentServer()
      .on('error', (refused) => resolve([refused]))
      .listen({ systemd: 'proxy' });
  });
  assert.match(error.message, /passed no socket/);
});

test.run();
