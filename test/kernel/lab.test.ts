/** The lab itself: what every other kernel and interop test stands on. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { addresses, createLab, hosts, type Lab } from '../helpers/lab.js';

const peer = (name: string) => new URL(`../helpers/peers/${name}.mjs`, import.meta.url);
const families = ['ipv4', 'ipv6'] as const;
const bracket = (address: string) => (address.includes(':') ? `[${address}]` : address);

const test = suite<{ lab: Lab }>('lab');
test.before(async (context) => {
  context.lab = await createLab({
    mtu: 1400,
    sysctls: { router: { 'net.ipv4.conf.cli0.rp_filter': 1 } },
    moreAddresses: { server: ['10.77.9.1', 'fd77:9::1'] },
  });
});
test.after(({ lab }) => lab.dispose());

test('the router forwards, and the server sees the client', async ({ lab }) => {
  const whoami = await lab.node('server', peer('whoami'), '80', '8080');
  for (const family of families) {
    for (const port of [80, 8080]) {
      const seen = lab.exec(
        'client',
        'curl',
        '-sS',
        '-m',
        '30',
        `http://${bracket(addresses.server[family])}:${port}/`,
      );
      const [remote, , local, localPort] = seen.trim().split(' ');
      assert.equal([remote, local, localPort], [addresses.client[family], addresses.server[family], String(port)]);
    }
  }
  await whoami.stop();
});

test('addresses behind a host are routed', async ({ lab }) => {
  const whoami = await lab.node('server', peer('whoami'), '80');
  for (const address of ['10.77.9.1', 'fd77:9::1']) {
    assert.match(await lab.run('client', 'curl', '-sS', '-m', '30', `http://${bracket(address)}/`), ` ${address} 80`);
  }
  await whoami.stop();
});

test('options reach the kernel', ({ lab }) => {
  for (const host of hosts) assert.match(lab.exec(host, 'ip', 'link', 'show', 'type', 'veth'), 'mtu 1400');
  assert.match(lab.exec('router', 'sysctl', 'net.ipv4.conf.cli0.rp_filter'), /= 1$/m);
});

test('every byte of a transfer is accounted for', async ({ lab }) => {
  const stream = await lab.node('server', peer('stream'), '9000');
  const transfer = (verb: 'get' | 'put', family: 'ipv4' | 'ipv6', ...rest: string[]) =>
    lab.run('client', process.execPath, peer('transfer').pathname, verb, addresses.server[family], '9000', ...rest);
  for (const family of families) {
    assert.match(await transfer('get', family, '5000000'), /^5000000 /);
    assert.match(await transfer('put', family, '5000000'), /^5000000 /);
  }
  assert.match(await transfer('get', 'ipv4', '300000', '1'), /^300000 /);
  await stream.stop();
});

test('an echo ends when its peer ends', async ({ lab }) => {
  const echo = await lab.node('server', peer('echo'), '7');
  const said = lab.exec(
    'client',
    'bash',
    '-c',
    `exec 3<>/dev/tcp/${addresses.server.ipv4}/7; echo hello >&3; head -n1 <&3`,
  );
  assert.is(said, 'hello\n');
  assert.is(await echo.stop(), null);
});

test('a snapshot changes with the rules, not with traffic', ({ lab }) => {
  const before = lab.snapshot('router');
  lab.exec(
    'router',
    'nft',
    'add table inet t; add chain inet t c { type filter hook forward priority 0; }; add rule inet t c counter',
  );
  const ruled = lab.snapshot('router');
  assert.is.not(ruled, before);
  lab.exec('client', 'bash', '-c', `: </dev/tcp/${addresses.server.ipv4}/22 || true`);
  assert.match(lab.exec('router', 'nft', 'list', 'ruleset'), /packets [1-9]/);
  assert.is(lab.snapshot('router'), ruled);
  lab.exec('router', 'nft', 'delete', 'table', 'inet', 't');

  const changes: [string, ...string[]][] = [
    ['ip', 'rule', 'add', 'fwmark', '1', 'lookup', '100'],
    ['ip', '-6', 'rule', 'add', 'fwmark', '1', 'lookup', '100'],
    ['ip', 'route', 'add', 'local', 'default', 'dev', 'lo', 'table', '100'],
    ['iptables-nft', '-t', 'mangle', '-N', 'test'],
  ];
  for (const change of changes) {
    const unchanged = lab.snapshot('router');
    lab.exec('router', ...change);
    assert.is.not(lab.snapshot('router'), unchanged, change.join(' '));
  }
});

test('a command that fails tells why, and a program that never gets ready too', async ({ lab }) => {
  assert.throws(() => lab.exec('client', 'ls', '/no/such/file'), /cannot access '\/no\/such\/file'/);
  const missing = await lab.node('client', '/no/such/script.mjs').catch((error: Error) => error.message);
  assert.match(missing as string, "Cannot find module '/no/such/script.mjs'");
});

test.run();
