// takes long
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
/** What both print for the same words; what is left of a timeout is less a moment later. */
const same = (words = 'list ruleset') => {
  const [ours, theirs] = [run(words), nft(words)].map((text) => unbroken(text).replaceAll(/expires \S+/g, 'expires'));
  assert.is(ours, theirs);
};

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
  const more = 'add counter inet x more { packets 9 bytes 10 ; }';
  nft(more);
  assert.match(
    run('reset counter inet x more'),
    /^table inet x \{\n\tcounter more \{\n\t\tpackets 9 bytes 10\n\t\}\n\}\n$/,
  );
  assert.match(nft('list', 'counter', 'inet', 'x', 'more'), 'packets 0 bytes 0');
  nft('delete counter inet x more; add table ip other; add counter ip other third');
  nft(more);
  const before = run('reset counters');
  assert.match(before, 'packets 9 bytes 10');
  nft('delete counter inet x more');
  nft(more);
  assert.is(before, nft('reset', 'counters'));
  nft('delete table ip other');
  run('flush set inet x s');
  for (const words of ['delete counter inet x web', 'delete set inet x s', 'delete chain inet x other']) run(words);
  same('list table inet x');
  run('delete table inet x');
  assert.is(nft('list', 'ruleset'), '');
  nft('add', 'table', 'inet', 'z');
  run('flush ruleset');
  assert.is(nft('list', 'ruleset'), '');
});

test('sets of intervals and with timeouts, as nft lists and finds them', () => {
  nft(`table inet x {
    set ports { type inet_service; flags interval; }
    set six { type ipv6_addr; flags interval; }
    set hosts { type ipv4_addr; flags timeout; elements = { 192.0.2.1 timeout 1d2h }; }
  }`);
  for (const words of [
    'add set inet x prefixes type ipv4_addr flags interval,timeout timeout 2h',
    'add element inet x prefixes 10.0.0.0/8 192.0.2.1 timeout 1h30m 198.51.100.3-198.51.100.9 240.0.0.0/4',
    'add element inet x ports 80 1000-2000 60000-65535',
    'add element inet x six 2001:db8::/32 fd00::1',
  ])
    run(words);
  same();
  same('list set inet x prefixes');
  const get = (set: string, ...elements: string[]) => {
    const ours = run(`get element inet x ${set} ${elements.join(' ')}`);
    const theirs = nft('get', 'element', 'inet', 'x', set, `{ ${elements.join(', ')} }`);
    // Of intervals nft does not tell the times here.
    const timeless = (text: string) => text.replaceAll(/ (timeout|expires) [^ ,]+/g, '');
    assert.is(timeless(ours), timeless(theirs));
    return ours;
  };
  assert.match(
    get('prefixes', '10.1.2.3', '198.51.100.4-198.51.100.5'),
    /10\.0\.0\.0\/8 .*198\.51\.100\.3-198\.51\.100\.9/,
  );
  assert.match(get('ports', '1500', '80'), /1000-2000.*80/);
  assert.match(get('hosts', '192.0.2.1'), /192\.0\.2\.1 timeout 1d2h expires 1d1h/);
  assert.match(run('get element inet x ports 65535 80'), 'elements = { 60000-65535, 80 }');
  run('delete element inet x prefixes 10.0.0.0/8 240.0.0.0/4');
  same();
  const missing = spawnSync(process.execPath, command('get', 'element', 'inet', 'x', 'ports', '3000'), {
    encoding: 'utf8',
  });
  assert.equal([missing.status, missing.stderr.includes('ENOENT')], [1, true]);
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
  // It may begin to hear in the midst of them.
  const whole = /^add table inet x\nadd counter inet x web\ndelete counter inet x web\ndelete table inet x$/m;
  for (let n = 0; n < 100 && !whole.test(told); n++) {
    nft('add table inet x; add counter inet x web');
    nft('delete', 'table', 'inet', 'x');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  monitor.kill('SIGKILL');
  assert.match(told, whole);
});

test.run();
