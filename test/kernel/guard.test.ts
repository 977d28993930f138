// takes long
/** Whatever way a process ends, and whoever runs it, nothing stays behind: no table, no policy rule, no route, no process. */
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type InterceptError, installIntercept, uninstallIntercept } from '../../src/index.js';
import { RouteSocket } from '../../src/netlink/route.js';
import { compiled } from '../helpers/compiled.js';
import { createLab, type Lab } from '../helpers/lab.js';
import { collectGarbage } from '../helpers/memory.js';
import { oneUser } from '../helpers/namespaces.js';
import { testUnless } from '../helpers/skip.js';
import { snapshot } from '../helpers/snapshot.js';
import { until } from '../helpers/wait.js';

const test = suite('guard');
const installOnce = compiled('test/helpers/intercept-once.ts');
const options = { tcp: [80], port: 50080 };
let lab: Lab;
let netns: string;

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
});
test.after(() => lab.dispose());

/** Guards that run or were not waited for, as `ps` tells: `pid ppid stat args`. */
const guards = () =>
  execFileSync('ps', ['-e', '-o', 'pid=,ppid=,stat=,comm=,args='], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => /linux_tproxy\.gu|linux-tproxy-g/.test(line));

/** A guard is kept for a moment: the next installation may need one. */
const guardsAre = (count: number) => until(() => guards().length === count, `there are ${count} guards`);
test.before.each(() => guardsAre(0));

/** How long the guards have taken, in ms. */
const took: number[] = [];
/** Waits until the router is as `before` and no guard is left. */
async function cleanedUp(before: string): Promise<void> {
  const started = performance.now();
  const socket = new RouteSocket({ netns });
  const isLeft = async () => (await socket.ruleList()).some(({ protocol }) => protocol === 84);
  await until(async () => !(await isLeft()), 'no policy rule is left');
  took.push(performance.now() - started);
  await socket.close();
  await until(() => lab.snapshot('router') === before, 'the router is as it was');
  await guardsAre(0);
}

const node = (...script: string[]) => [process.execPath, ...script];
/** Runs the text of a program in the router, until it ends. */
function runText(text: string): string {
  const source = `import { installIntercept } from '${compiled('src/index.ts')}';\n${text}`;
  const [file = '', ...args] = node('--input-type=module', '--eval', source);
  return lab.exec('router', 'sh', '-c', '"$@" 2>&1; true', 'sh', file, ...args);
}

// ---- killed -------------------------------------------------------------------------------------------------------------

for (const [where, host] of [
  ['in its own namespace', 'router'],
  ['in another one', 'client'],
] as const)
  test(`kill -9 of a process that has installed ${where}`, async () => {
    const before = lab.snapshot('router');
    const holder = await lab.node(host, installOnce, JSON.stringify({ ...options, netns }), 'hold');
    assert.match(lab.exec('router', 'ip', '-6', 'rule'), 'proto 84');
    assert.is(guards().length, 1);
    await holder.stop('SIGKILL');
    await cleanedUp(before);
  });

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGABRT', 'SIGSEGV'] as const)
  test(`${signal}`, async () => {
    const before = lab.snapshot('router');
    const holder = await lab.node('router', installOnce, JSON.stringify(options), 'hold');
    await holder.stop(signal);
    await cleanedUp(before);
  });

test('killed at any moment of the installation', async () => {
  const before = lab.snapshot('router');
  for (let n = 1; ; n++) {
    // One thread in the pool: strace counts by thread.
    const [file = '', ...args] = [
      ...['env', 'UV_THREADPOOL_SIZE=1', 'strace', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=sendto'],
      ...['-e', `inject=sendto:signal=SIGKILL:when=${n}`, ...node(installOnce, JSON.stringify(options))],
    ];
    const output = lab.exec('router', 'sh', '-c', '"$@"; true', 'sh', file, ...args);
    await cleanedUp(before);
    if (output.includes('installed')) {
      assert.ok(n > 14, `it was killed at ${n - 1} moments`);
      break;
    }
  }
});

test('signals to everybody in sight do not end the guard', async () => {
  const before = lab.snapshot('router');
  const holder = await lab.node('router', installOnce, JSON.stringify(options), 'hold');
  const [guard = ''] = guards()[0]?.trim().split(/\s+/) ?? [];
  for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGUSR1', 'SIGPIPE'] as const)
    process.kill(Number(guard), signal);
  const stat = execFileSync('ps', ['-o', 'pgid=,sid=', '-p', guard], { encoding: 'utf8' }).trim().split(/\s+/);
  assert.equal(stat, [guard, guard], 'it is in a session of its own');
  await holder.stop('SIGKILL');
  await cleanedUp(before);
});

test('killed together with its guard: what is left is reaped by the next start', async () => {
  const before = lab.snapshot('router');
  const holder = await lab.node('router', installOnce, JSON.stringify(options), 'hold');
  const installed = lab.exec('router', 'sh', '-c', 'ip -d rule; ip -6 -d rule; ip route show table 100');
  const [guard = ''] = guards()[0]?.trim().split(/\s+/) ?? [];
  process.kill(Number(guard), 'SIGKILL');
  await holder.stop('SIGKILL');
  const left = lab.snapshot('router');
  assert.match(left, 'proto 84');
  assert.not.match(left, 'linux-tproxy');
  const rules = await installIntercept({ ...options, netns });
  assert.is(lab.exec('router', 'sh', '-c', 'ip -d rule; ip -6 -d rule; ip route show table 100'), installed);
  await rules.uninstall();
  assert.is(lab.snapshot('router'), before);
});

for (const [what, more, next] of [
  ['the same', {}, {}],
  ['the same, with backend iptables', { backend: 'iptables' }, {}],
  ['the same, with lifetime persist', { lifetime: 'persist', name: 'web' }, {}],
  ['another name', {}, { name: 'other' }],
  ['other numbers and backend iptables', { backend: 'iptables' }, { table: 222, priority: 2000 }],
  ['the same, to stay', {}, { lifetime: 'permanent' }],
] as const)
  test(`a guard that comes late spares the successor's: ${what}`, async () => {
    const before = lab.snapshot('router');
    const holder = await lab.node('router', installOnce, JSON.stringify({ ...options, ...more }), 'hold');
    const [guard = ''] = guards()[0]?.trim().split(/\s+/) ?? [];
    process.kill(Number(guard), 'SIGSTOP');
    await holder.stop('SIGKILL');
    // What it deleted would stay so.
    const rules = await installIntercept({ ...options, ...more, ...next, netns, repair: false });
    const whole = lab.snapshot('router');
    process.kill(Number(guard), 'SIGCONT');
    const isThere = () => guards().some((line) => line.trim().startsWith(`${guard} `));
    await until(() => !isThere(), 'the guard has ended');
    assert.is(lab.snapshot('router'), whole);
    assert.equal(await rules.verify(), { intact: true, missing: [] });
    await rules.uninstall();
    assert.is(lab.snapshot('router'), before);
    await guardsAre(0);
  });

test('nobody takes what a guard is about to delete', async () => {
  const before = lab.snapshot('router');
  const holder = await lab.node('router', installOnce, JSON.stringify(options), 'hold');
  const [guard = ''] = guards()[0]?.trim().split(/\s+/) ?? [];
  // Whoever comes has all the time he needs between its look and its deletions.
  const slow = ['-e', 'trace=sendto', '-e', 'inject=sendto:delay_enter=100000:when=2+'];
  const tracer = lab.spawn('router', 'strace', '-o', '/dev/null', '-p', guard, ...slow);
  await tracer.until(/attached/);
  await holder.stop('SIGKILL');
  const rules = await installIntercept({ ...options, netns, repair: false });
  await until(() => !guards().some((line) => line.trim().startsWith(`${guard} `)), 'the guard has ended');
  const found = await rules.verify();
  await rules.uninstall();
  await tracer.stop();
  assert.equal(found, { intact: true, missing: [] });
  assert.is(lab.snapshot('router'), before);
  await guardsAre(0);
});

// ---- who may do it ------------------------------------------------------------------------------------------------------

test('without root, in a user namespace', () => {
  const inside = `
    ip link set lo up
    show() { for f in -4 -6; do ip $f -d rule; ip $f route show table all; done; }
    show >/run/before
    "$@" >/run/output & while ! grep -q ready /run/output; do sleep 0.05; done
    test "$(ip rule | grep -c 'proto 84')" = 3
    kill -9 $!; wait $! 2>/dev/null || true
    for i in $(seq 300); do show >/run/after; if cmp -s /run/before /run/after; then echo clean; exit; fi; sleep 0.1; done
    diff /run/before /run/after`;
  const nobody = oneUser ? [] : ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--no-new-privs'];
  const [file = '', ...args] = [
    ...[...nobody, 'unshare', '--user', '--map-root-user', '--net', '--mount'],
    ...[
      'sh',
      '-euc',
      `mount -t tmpfs tmpfs /run; ${inside}`,
      'sh',
      ...node(installOnce, JSON.stringify(options), 'hold'),
    ],
  ];
  assert.match(lab.exec('router', file, ...args), 'clean');
});

testUnless(
  oneUser && 'file capabilities need root',
  test,
  'a Node that has CAP_NET_ADMIN as a file capability',
  async () => {
    const copy = `${mkdtempSync('/run/node-')}/node`;
    copyFileSync(process.execPath, copy);
    chmodSync(join(copy, '..'), 0o755);
    execFileSync('setcap', ['cap_net_admin+ep', copy]);
    const before = lab.snapshot('router');
    const holder = lab.spawn(
      'router',
      ...(['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', copy] as const),
      ...node(installOnce, JSON.stringify(options), 'hold').slice(1),
    );
    await holder.until(/^ready/m);
    await holder.stop('SIGKILL');
    await cleanedUp(before);
  },
);

// ---- ending in good order -----------------------------------------------------------------------------------------------

test('uninstalled, there is no guard any more, nor a zombie of one', async () => {
  const before = lab.snapshot('router');
  const rules = await installIntercept({ ...options, netns });
  assert.is(guards().length, 1);
  await rules.uninstall();
  assert.is(lab.snapshot('router'), before);
  await guardsAre(0);
});

test('one guard serves several installations, one after the other, and does the work of the last', async () => {
  const before = lab.snapshot('router');
  const source = `
    for (const port of [50080, 50081]) await (await installIntercept({ ...options, port })).uninstall();
    await installIntercept({ ...options, port: 50082, table: 200 });
    console.log(execFileSync('pgrep', ['-f', 'linux-tproxy-guard'], { encoding: 'utf8' }).trim(), process.pid);
    process.kill(process.pid, 'SIGKILL');`;
  const output = runText(
    `import { execFileSync } from 'node:child_process'; const options = ${JSON.stringify(options)}; ${source}`,
  );
  assert.match(output, /^\d+ \d+$/m, output);
  await cleanedUp(before);
});

test('a guard with nothing to do does nothing', async () => {
  const rules = await installIntercept({ ...options, netns });
  const routing = () => lab.exec('router', 'sh', '-c', 'ip -d rule; ip -6 -d rule; ip route show table 100');
  const installed = routing();
  await rules.uninstall();
  const [guard = ''] = guards()[0]?.trim().split(/\s+/) ?? [];
  // What it had to delete is somebody else's by now.
  const permanent = await installIntercept({ ...options, netns, lifetime: 'permanent' });
  assert.is(routing(), installed);
  process.kill(Number(guard), 0);
  await permanent.release();
  await guardsAre(0);
  assert.is(routing(), installed);
  await uninstallIntercept({ name: '50080', netns });
});

test('an installation that fails half-way leaves no guard', async () => {
  execFileSync('sh', [
    '-euc',
    'ip netns add broken; ip -n broken link set lo up; ip netns exec broken sysctl -qw net.ipv6.conf.all.disable_ipv6=1',
  ]);
  const path = '/run/netns/broken';
  const before = snapshot(path);
  const { step } = await installIntercept({ ...options, netns: path, families: ['ipv4', 'ipv6'] }).then(
    () => assert.unreachable() as never,
    (error: InterceptError) => error,
  );
  assert.is(step, 'routes'); // the guard was there already
  await guardsAre(0);
  assert.is(snapshot(path), before);
  execFileSync('ip', ['netns', 'delete', 'broken']);
});

test('permanent rules have none', async () => {
  const rules = await installIntercept({ ...options, netns, lifetime: 'permanent' });
  assert.equal(guards(), []);
  await rules.uninstall();
});

for (const [way, end] of [
  ['process.exit()', 'process.exit(0);'],
  ['the end of the program', ''],
  ['an exception', 'throw new Error("on purpose");'],
  ['a rejection', 'Promise.reject(new Error("on purpose"));'],
  ['process.abort()', 'process.abort();'],
  ['process.reallyExit()', 'process.reallyExit(0);'],
] as const)
  test(`ended by ${way}`, async () => {
    const before = lab.snapshot('router');
    const output = runText(`await installIntercept(${JSON.stringify(options)}); console.log('installed'); ${end}`);
    assert.match(output, 'installed');
    await cleanedUp(before);
  });

test('a worker thread that is terminated', async () => {
  const before = lab.snapshot('router');
  const output = runText(`
    import { execFileSync } from 'node:child_process';
    import { Worker } from 'node:worker_threads';
    import { once } from 'node:events';
    const worker = new Worker(${JSON.stringify(`
      import { parentPort } from 'node:worker_threads';
      import { installIntercept } from '${compiled('src/index.ts')}';
      await installIntercept(${JSON.stringify(options)});
      parentPort.postMessage('installed');`)}, { eval: true });
    console.log(...await once(worker, 'message'));
    await worker.terminate();
    console.log(execFileSync('sh', ['-c', 'nft list tables; ip rule; ps -e -o stat=,comm=,args='], { encoding: 'utf8' }));
  `);
  assert.match(output, /^installed$/m, output);
  assert.not.match(output, /linux-tproxy-50080|proto 84|linux-tproxy-guard|linux_tproxy.*defunct/, output);
  await cleanedUp(before);
});

test('one of several installations goes, and its guard with it', async () => {
  const before = lab.snapshot('router');
  const one = await installIntercept({ ...options, netns });
  const two = await installIntercept({ ...options, netns, port: 50081 });
  assert.is(guards().length, 2);
  await one.uninstall();
  await guardsAre(1);
  assert.equal(await two.verify(), { intact: true, missing: [] });
  await two.uninstall();
  assert.is(lab.snapshot('router'), before);
  await guardsAre(0);
});

test('a guard that somebody has stopped delays nobody', async () => {
  const rules = await installIntercept({ ...options, netns });
  const [guard = ''] = guards()[0]?.trim().split(/\s+/) ?? [];
  process.kill(Number(guard), 'SIGSTOP');
  await rules.uninstall(); // would never come back
  await guardsAre(0);
});

test('nothing of its parent stays open in it', async () => {
  const rules = await installIntercept({ ...options, netns });
  const [guard = ''] = guards()[0]?.trim().split(/\s+/) ?? [];
  const list = (what: string) => execFileSync('sh', ['-c', what], { encoding: 'utf8' }).trim();
  // It closes the rest first of all, but may not have run yet.
  await until(() => list(`ls /proc/${guard}/fd | tr '\\n' ' '`) === '0 1 2', 'it has closed the rest');
  assert.is(list(`readlink /proc/${guard}/cwd`), '/');
  assert.is(list(`tr '\\0' '\\n' </proc/${guard}/environ`), '');
  await rules.uninstall();
});

test('without its executable everything works, but for a warning', () => {
  const copy = mkdtempSync('/run/package-');
  const addon = 'build/Release/linux_tproxy.node';
  mkdirSync(join(copy, 'build/Release'), { recursive: true });
  for (const path of ['src', 'package.json', 'test/helpers/intercept-once.js', addon])
    cpSync(compiled(path), join(copy, path), { recursive: true, dereference: true });
  symlinkSync(compiled('node_modules'), join(copy, 'node_modules'));
  assert.ok(existsSync(compiled(addon.replace('.node', '.guard'))));
  const [file = '', ...args] = node(join(copy, 'test/helpers/intercept-once.js'), JSON.stringify(options));
  const output = lab.exec('router', 'sh', '-c', '"$@" 2>&1', 'sh', file, ...args);
  assert.match(output, '"uninstalled":true');
  assert.match(output, /\[LINUX_TPROXY_NO_GUARD\] Warning: .*linux_tproxy\.guard: ENOENT/);
});

test('all that within a second', () => {
  took.sort((one, other) => one - other);
  const median = took[Math.floor(took.length / 2)] as number;
  console.log(`(${took.length} times: median ${median.toFixed()} ms, slowest ${took.at(-1)?.toFixed()} ms)`);
  // The median: other tests run beside this one.
  assert.ok(median < 1000);
});

// ---- the socket's own ---------------------------------------------------------------------------------------------------

test('a guard that nothing refers to does its work', async () => {
  const socket = new RouteSocket({ netns });
  const rule = { family: 'ipv4', action: 'lookup', table: 99, priority: 4000 } as const;
  await socket.ruleAdd(rule);
  (() => socket.guard([{ verb: 'delete', kind: 'rule', rule }]))();
  const isThere = async () => (await socket.ruleList('ipv4')).some(({ priority }) => priority === 4000);
  await until(() => {
    collectGarbage();
    return isThere().then((there) => !there);
  }, 'the rule is gone');
  await guardsAre(0);
  const wrong = { ...rule, family: 'ipx' as 'ipv4' };
  assert.throws(() => socket.guard([{ verb: 'delete', kind: 'rule', rule: wrong }]), /family/);
  await socket.close();
});

test.run();
