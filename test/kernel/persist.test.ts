/** Rules that outlive their process: taken over by the next one, asked of a living one, gone when nobody comes. */
import { execFileSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  type InstalledRules,
  type InstallOptions,
  type InterceptError,
  installIntercept,
  listInstalled,
  type Owner,
  uninstallIntercept,
} from '../../src/index.js';
import { NftablesSocket } from '../../src/netlink/nftables.js';
import { createLab, type Lab, type Program } from '../helpers/lab.js';
import { until } from '../helpers/wait.js';

const test = suite('persist');
const helper = (name: string) => new URL(`../helpers/${name}.ts`, import.meta.url).pathname;
const table = 'inet linux-tproxy-web';
let lab: Lab;
let netns: string;
let before: string;

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  before = lab.snapshot('router');
});
test.after(() => lab.dispose());
test.after.each(async () => {
  await uninstallIntercept({ name: 'web', netns }).catch(() => {});
});

const options = { name: 'web', port: 50080, tcp: [80], lifetime: 'persist' } as const;
const install = (more: Partial<InstallOptions> = {}): Promise<InstalledRules> =>
  installIntercept({ ...options, netns, ...more });
const hold = (more: object = {}): Promise<Program> =>
  lab.node('router', helper('intercept-once'), JSON.stringify({ ...options, ...more }), 'hold');
const status = async () => (await listInstalled({ netns })).installed[0];
/** But for what only the owner's table shows, and for what traffic changes. */
const listing = () =>
  lab
    .exec('router', 'nft', 'list', 'table', ...table.split(' '))
    .replace(/# progname.*|\tflags( owner)?\s*\n| expires \w+|packets \d+ bytes \d+/g, '')
    .replace(/\s*\n\s*/g, '\n');
const routing = () =>
  lab.exec('router', 'sh', '-c', 'for f in -4 -6; do ip $f -d rule; ip $f route show table all; done');
const guards = () =>
  execFileSync('ps', ['-e', '-o', 'pid=,stat=,comm='], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => /linux_tproxy\.gu/.test(line));
async function refused(promise: Promise<unknown>): Promise<InterceptError> {
  return promise.then(
    () => assert.unreachable('was not refused') as never,
    (error) => error,
  );
}

// ---- after a crash ------------------------------------------------------------------------------------------------------

test('kill -9: the table stays, an orphan, until a process of the same name takes it over as it is', async () => {
  const first = await hold();
  const [whole, routes] = [listing(), routing()];
  await first.stop('SIGKILL');
  assert.is(listing(), whole);
  const orphan = await status();
  assert.equal([orphan?.lifetime, orphan?.owner, orphan?.intact], ['persist', undefined, true]);
  const second = await hold();
  assert.is(listing(), whole);
  assert.is(routing(), routes);
  assert.match(lab.exec('router', 'nft', 'list', 'table', ...table.split(' ')), 'progname node');
  const { owner } = (await status()) as { owner: Owner };
  assert.equal([owner.processId, owner.command], [second.process.pid, 'node']);
  await until(() => guards().length === 1, 'only the guard of the second is left');
  await second.stop('SIGKILL');
  assert.ok(await uninstallIntercept({ name: 'web', netns }));
  assert.is(lab.snapshot('router'), before);
  await until(() => guards().length === 0, 'a guard that has nothing left to guard goes');
});

test('kill -9, and nobody comes: after the grace all of it is gone, and not before', async () => {
  const process = await hold({ graceMs: 1000 });
  const started = performance.now();
  await process.stop('SIGKILL');
  await until(async () => !(await status()), 'it goes');
  assert.ok(performance.now() - started > 990);
  await until(() => lab.snapshot('router') === before, 'all of it');
  await until(() => guards().length === 0, 'and the guard');
});

test('who takes over and dies has a grace of its own', async () => {
  const first = await hold({ graceMs: 5000 });
  await first.stop('SIGKILL');
  const died = performance.now();
  const second = await hold({ graceMs: 5000 });
  await sleep(Math.max(0, died + 4500 - performance.now()));
  await second.stop('SIGKILL');
  await sleep(1000); // that of the first is over
  assert.ok(await status());
});

// ---- what may go wrong with it ------------------------------------------------------------------------------------------

test('who does not answer keeps it, and is named', async () => {
  const holder = await hold();
  process.kill(holder.process.pid as number, 'SIGSTOP');
  const error = await refused(install());
  assert.is(error.code, 'ERR_TPROXY_NAME_IN_USE');
  assert.match(error.message, `held by process ${holder.process.pid} (node), which does not hand it over`);
  assert.not.match(lab.exec('router', 'nft', 'list', 'tables'), 'next');
  process.kill(holder.process.pid as number, 'SIGCONT');
  await sleep(200);
  assert.is((await status())?.owner?.processId, holder.process.pid);
  await holder.stop('SIGKILL');
});

test('somebody asks, and goes before it has taken over: the first takes its rules back, and looks after them as before', async () => {
  const rules = await install();
  const asking = new NftablesSocket({ netns });
  const request = { kind: 'table', family: 'inet', name: 'linux-tproxy-web/next', flags: ['owner'] } as const;
  await asking.commit([{ verb: 'create', object: request }]);
  await until(async () => (await status())?.owner === undefined, 'it lets go');
  await asking.close();
  await until(async () => (await status())?.owner?.processId === process.pid, 'it takes it back');
  await rules.exclude.to.add('192.0.2.0/24');
  lab.exec('router', 'ip', 'rule', 'del', 'pref', '99');
  await until(async () => (await rules.verify()).intact, 'it is repaired');
  await until(() => guards().length === 1, 'there is one guard again');
  await rules.uninstall();
  assert.is(lab.snapshot('router'), before);
});

test('two that ask at once: one after the other', async () => {
  const rules = await install();
  const handed: Owner[] = [];
  rules.on('handover', (owner) => handed.push(owner));
  const both = await Promise.all([install({ port: 50081 }), install({ port: 50082 })]);
  await until(() => handed.length > 0, 'it is told');
  assert.is(handed.length, 1);
  const last = (await status())?.port;
  for (const each of both) await each.uninstall();
  assert.ok(last === 50081 || last === 50082);
  assert.is(lab.snapshot('router'), before);
});

test('what it handed over is nothing of its own any more', async () => {
  const old = await install();
  const next = await install({ port: 50081 });
  await old.uninstall();
  assert.equal(await next.verify(), { intact: true, missing: [] });
  await old.exclude.to.add('192.0.2.0/24').then(
    () => assert.unreachable(),
    ({ code }) => assert.is(code, 'EBADF'),
  );
  await next.uninstall();
  assert.is(lab.snapshot('router'), before);
});

test('released, it is left to the next one for the grace, without its process', async () => {
  const old = await install({ graceMs: 1000 });
  await old.release();
  assert.is((await status())?.owner, undefined);
  const next = await install({ graceMs: 1000 });
  await sleep(1300);
  assert.equal(await next.verify(), { intact: true, missing: [] });
  await next.release();
  await until(() => lab.snapshot('router') === before, 'it goes');
  await until(() => guards().length === 0, 'no guard is left, nor its zombie');
});

test('a name that was left, wanted with another lifetime', async () => {
  await (await install()).release();
  for (const lifetime of ['process', 'permanent'] as const) {
    const { code, message } = await refused(install({ lifetime }));
    assert.is(code, 'ERR_TPROXY_NAME_IN_USE');
    assert.match(message, /left it to the next one.*lifetime: 'persist'.*linux-tproxy down --name web/);
  }
  await (await install()).uninstall();
  for (const lifetime of ['process', 'permanent'] as const) {
    const other = await install({ lifetime });
    assert.is((await refused(install())).code, 'ERR_TPROXY_NAME_IN_USE');
    await other.uninstall();
  }
});

test('a kernel that has no such tables says so before anything is changed', async () => {
  const socket = new NftablesSocket({ netns });
  const unknown = { kind: 'table', family: 'inet', name: 'x', flags: [8] } as const;
  assert.match((await refused(socket.commit([{ verb: 'add', object: unknown }]))).message, /\(persist\) Linux 6\.9/);
  await socket.close();
});

// ---- another configuration ----------------------------------------------------------------------------------------------

const changes: Record<string, Partial<InstallOptions>> = {
  'ports and prefixes': { tcp: [80, 443], exclude: { to: ['203.0.113.0/24'] }, port: 50081 },
  'onDown, from': { onDown: 'closed', from: ['10.0.0.0/8'] },
  'own host': { ownHost: true },
  'one family, UDP': { families: ['ipv4'], udp: [53] },
  'mark, table and priority': { fwmark: { value: 0x100, mask: 0x300 }, table: 222, priority: 2000 },
};
for (const [name, change] of Object.entries(changes))
  test(`taken over with another configuration it is as if installed so: ${name}`, async () => {
    const wanted = await install(change);
    const [fresh, freshRouting] = [listing(), routing()];
    await wanted.uninstall();
    const old = await install({ exclude: { to: ['192.0.2.0/24'] } });
    const next = await install(change);
    assert.is(listing(), fresh);
    assert.is(routing(), freshRouting);
    const back = await install({ exclude: { to: ['192.0.2.0/24'] } });
    assert.equal(await back.verify(), { intact: true, missing: [] });
    for (const each of [old, next, back]) await each.uninstall();
    assert.is(lab.snapshot('router'), before);
  });

test('what was added for a time stays for the rest of it; the rest is as the options say', async () => {
  const old = await install({ exclude: { to: ['192.0.2.0/24'] } });
  await old.exclude.to.add('198.51.100.0/24', { ttlMs: 5000 });
  await old.exclude.to.add('198.51.100.128/25', { ttlMs: 60_000 });
  await old.exclude.to.add(['203.0.113.0/24', '2001:db8::/32']);
  const next = await install({ exclude: { to: ['192.0.2.0/25'] } });
  assert.equal(next.exclude.to.values(), ['192.0.2.0/25', '198.51.100.0/24']);
  await until(() => !next.exclude.to.values().includes('198.51.100.0/24'), 'its time is over');
  assert.equal(next.exclude.to.values(), ['192.0.2.0/25', '198.51.100.128/25']);
  const { sets } = (await status()) as { sets: Record<string, readonly string[]> };
  assert.equal(sets['exclude_to4'], ['192.0.2.0/25', '198.51.100.128/25']);
  await next.exclude.to.delete('198.51.100.128/25');
  assert.equal(next.exclude.to.values(), ['192.0.2.0/25']);
  await next.uninstall();
});

test('connections that the table remembers are remembered on', async () => {
  const own = { ownHost: true, tcp: [80, 443] } as const;
  const old = await install(own);
  const element = async (rules: InstalledRules) => {
    const socket = new NftablesSocket({ netns });
    const [found] = await socket.list('elements', { family: 'inet', table: rules.plan.nftTable, set: 'own4' });
    await socket.close();
    return found?.elements.length;
  };
  const call = lab.run('router', 'timeout', '1', 'bash', '-c', ': <>/dev/tcp/10.77.2.2/80; sleep 0.5').catch(() => {});
  await until(async () => (await element(old)) === 1, 'it is remembered');
  const same = await install(own);
  assert.is(await element(same), 1);
  const other = await install({ ...own, from: ['10.0.0.0/8'] });
  assert.is(await element(other), 1);
  await call;
  await other.uninstall();
});

test('what is missing of its routing is put back', async () => {
  await (await install()).release();
  lab.exec('router', 'sh', '-c', 'ip rule del pref 98; ip -6 route flush table 100');
  const next = await install({ repair: false });
  assert.equal(await next.verify(), { intact: true, missing: [] });
  await next.uninstall();
  assert.is(lab.snapshot('router'), before);
});

test.run();
