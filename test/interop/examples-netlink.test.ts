/** examples/ip-rule and examples/ip-route beside `ip`: what one makes the other lists, in the same words. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { enterNamespaces } from '../helpers/namespaces.js';

enterNamespaces();

const test = suite('netlink examples');
const command = (example: string, ...words: string[]) => [
  '--import',
  import.meta.resolve('tsx'),
  fileURLToPath(new URL(`../../examples/${example}/main.mjs`, import.meta.url)),
  ...words,
];
const run = (example: string, ...words: string[]) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, command(example, ...words), { encoding: 'utf8' });
  assert.is(status, 0, stderr);
  return stdout.trimEnd();
};
const ip = (...words: string[]) =>
  execFileSync('ip', words, { encoding: 'utf8' })
    .trimEnd()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');

test.before(() => {
  execFileSync('sh', [
    '-euc',
    `ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up
     ip address add 10.1.0.1/24 dev eth0; ip -6 address add 2001:db8:1::1/64 dev eth0 nodad`,
  ]);
});

test('policy rules', () => {
  assert.is(run('ip-rule'), ip('rule'));
  const added = [
    'from 192.0.2.0/24 to 198.51.100.7 iif lo fwmark 0x1/0x3 pref 97 lookup 100',
    'not fwmark 0x5 oif eth0 pref 98 goto 32766',
    'pref 99 prohibit',
  ];
  for (const rule of added) run('ip-rule', 'add', ...rule.split(' '));
  assert.is(run('ip-rule'), ip('rule'));
  assert.match(run('ip-rule'), 'fwmark 0x1/0x3');
  run('ip-rule', '-6', 'add', 'from', '2001:db8::/32', 'pref', '97', 'lookup', '100');
  assert.is(run('ip-rule', '-6'), ip('-6', 'rule'));
  for (const rule of added) run('ip-rule', 'del', ...rule.split(' '));
  assert.is(run('ip-rule'), ip('rule'));
  const { status, stderr } = spawnSync(process.execPath, command('ip-rule', 'del', 'pref', '7', 'nop'), {
    encoding: 'utf8',
  });
  assert.is(status, 1);
  assert.match(stderr, 'ENOENT');
});

test('routes', () => {
  const added = [
    '192.0.2.0/24 via 10.1.0.2 dev eth0',
    '198.51.100.7 dev eth0 src 10.1.0.1 metric 5',
    'blackhole 203.0.113.0/24',
  ];
  for (const route of added) run('ip-route', 'add', ...route.split(' '));
  const several = '203.0.114.0/24 nexthop via 10.1.0.2 dev eth0 weight 2 nexthop via 10.1.0.3 dev eth0';
  ip('route', 'add', ...several.split(' '));
  assert.is(run('ip-route'), ip('route'));
  assert.match(run('ip-route'), 'via 10.1.0.2');
  run('ip-route', 'add', 'local', 'default', 'dev', 'lo', 'table', '100');
  assert.is(run('ip-route', 'list', 'table', '100'), ip('route', 'show', 'table', '100'));
  for (const route of added) run('ip-route', 'del', ...route.split(' '));
  ip('route', 'del', '203.0.114.0/24');
  assert.is(run('ip-route'), ip('route'));
});

test('changes are told', async () => {
  const monitor = spawn(process.execPath, command('ip-rule', 'monitor'));
  let told = '';
  monitor.stdout.on('data', (text) => {
    told += text;
  });
  const whole = /^50:\tfrom all lookup 7\nDeleted 50:\tfrom all lookup 7$/m;
  for (let n = 0; n < 100 && !whole.test(told); n++) {
    ip('rule', 'add', 'pref', '50', 'lookup', '7');
    ip('rule', 'del', 'pref', '50');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  monitor.kill('SIGKILL');
  assert.match(told, whole);
});

test.run();
