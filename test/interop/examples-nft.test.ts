/** examples/nft beside `nft`: what one makes the other lists, in the same words. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { enterNamespaces } from '../helpers/namespaces.js';

enterNamespaces();

const test = suite('nft example');
const command = (...words: string[]) => [
  '--import',
  import.meta.resolve('tsx'),
  fileURLToPath(new URL('../../examples/nft/main.mjs', import.meta.url)),
  ...words,
];
const run = (words: string) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, command(...words.split(' ')), { encoding: 'utf8' });
  assert.is(status, 0, stderr);
  return stdout;
};
const nft = (...words: string[]) => execFileSync('nft', words, { encoding: 'utf8' });
/** nft breaks long lists of elements where its columns end. */
const unbroken = (text: string) => text.replaceAll(/,\n\s+/g, ', ').trimEnd();
const same = () => assert.is(unbroken(run('list ruleset')), unbroken(nft('list', 'ruleset')));

test.after.each(() => {
  nft('flush', 'ruleset');
});

test('what nft makes', () => {
  execFileSync('nft', ['-f', '-'], {
    input: `table inet x {
  comment "of a table"
  counter web { packets 3 bytes 4 }
  set prefixes { type ipv4_addr; flags interval; auto-merge; elements = { 10.0.0.0/8, 192.0.2.1, 198.51.100.1-198.51.100.9 } }
  set ports { type inet_service; flags interval; elements = { 80, 90-100 } }
  set names { type ifname; elements = { "eth0", "eth1" } }
  set six { type ipv6_addr; elements = { 2001:db8::1 } }
  set sources { type ipv4_addr; size 100; flags dynamic,timeout; timeout 90s; }
  chain other { counter packets 5 bytes 6 return; }
  chain c {
    type filter hook prerouting priority mangle; policy accept;
    iifname "eth0" counter name web accept
    iifname "eth*" drop
    iif "lo" accept comment "a comment"
    ip saddr @prefixes accept
    ip6 daddr 2001:db8::1 tcp dport @ports drop
    tcp dport != @ports accept
    tcp dport 80 meta mark set 0x00000005
    meta mark 0x00000007 accept
    fib daddr type local jump other
    ct direction original accept
    add @sources { ip saddr timeout 10s } accept
    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:50080
    meta l4proto tcp tproxy ip6 to [2001:db8::1]:50080
    goto other
  }
}
table ip y {
  chain nat { type nat hook prerouting priority dstnat; policy accept; tcp dport 80 redirect to :8080; }
}`,
  });
  same();
});

test('what it makes itself', () => {
  for (const words of [
    'add table inet x',
    'add chain inet x c type filter hook input priority 0 policy drop',
    'add chain inet x other',
    'add set inet x s type ipv4_addr',
    'add element inet x s 192.0.2.1 192.0.2.7',
    'add counter inet x web',
  ])
    run(words);
  same();
  assert.match(nft('list', 'ruleset'), '192.0.2.7');
  run('delete element inet x s 192.0.2.1');
  same();
  assert.not.match(nft('list', 'ruleset'), '192.0.2.1');
  nft('add', 'counter', 'inet', 'x', 'more', '{ packets 9 bytes 10 ; }');
  assert.match(run('reset counter inet x more'), 'packets 9 bytes 10');
  assert.match(nft('list', 'counter', 'inet', 'x', 'more'), 'packets 0 bytes 0');
  run('flush set inet x s');
  for (const words of ['delete counter inet x web', 'delete set inet x s', 'delete chain inet x other']) run(words);
  same();
  run('delete table inet x');
  assert.is(nft('list', 'ruleset'), '');
  nft('add', 'table', 'inet', 'z');
  run('flush ruleset');
  assert.is(nft('list', 'ruleset'), '');
});

test('what cannot be is said', () => {
  const { status, stderr } = spawnSync(process.execPath, command('delete', 'table', 'inet', 'none'), {
    encoding: 'utf8',
  });
  assert.is(status, 1);
  assert.match(stderr, 'ENOENT');
});

test('changes are told', async () => {
  const monitor = spawn(process.execPath, command('monitor'));
  let told = '';
  monitor.stdout.on('data', (text) => {
    told += text;
  });
  for (let n = 0; n < 100 && !told.includes('delete table'); n++) {
    nft('add table inet x; add counter inet x web');
    nft('delete', 'table', 'inet', 'x');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  monitor.kill('SIGKILL');
  assert.match(told, /^add table inet x\nadd counter inet x web\ndelete counter inet x web\ndelete table inet x$/m);
});

test.run();
