/** Live sets: what packets make of a change, what the kernel holds after it, and what is refused. IPv4 and IPv6. */
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { NftablesSocket } from '../../src/netlink/index.js';
import type { PrefixSet } from '../../src/types.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { install, rulesOf, startProxy, stop, stopAll } from '../helpers/proxies.js';
import { ask, dial, greet } from '../helpers/talk.js';

const test = suite('live sets');
let lab: Lab;
let netns: string;

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  for (const port of [80, 8443]) await greet(lab, 'server', 'server', port);
});
test.after.each(stopAll);
test.after(() => lab.dispose());

const elements = (set: string) =>
  /elements = \{([^}]*)\}/
    .exec(lab.exec('router', 'nft', 'list', 'set', 'inet', 'linux-tproxy-50080', set))?.[1]
    ?.split(',')
    .map((each) => each.trim()) ?? [];
/** Chains and their rules with handles and counters: what a change of a set must not touch. */
const rulesListed = () =>
  lab.exec('router', 'nft', '-a', 'list', 'table', 'inet', 'linux-tproxy-50080').replace(/\tset (.|\n)*?\n\t\}\n/g, '');

async function generationsDuring(work: () => Promise<unknown>): Promise<number> {
  const socket = new NftablesSocket({ netns });
  const { id: before } = await socket.generation();
  await work();
  const { id: after } = await socket.generation();
  await socket.close();
  return after - before;
}

for (const family of ['ipv4', 'ipv6'] as const) {
  const client = addresses.client[family];
  const target = addresses.server[family];
  const [clients, servers, elsewhere] = {
    ipv4: ['10.77.1.0/24', '10.77.2.0/24', '192.0.2.0/24'],
    ipv6: ['fd77:1::/64', 'fd77:2::/64', '2001:db8::/32'],
  }[family] as [string, string, string];
  const who = () => ask(lab, 'client', target, 80);

  test(`${family}: an excluded destination or source goes direct at once, and is intercepted again when deleted`, async () => {
    const server = await startProxy(lab, { tcp: [80] });
    const { exclude } = rulesOf(server);
    for (const [set, prefix] of [
      [exclude.to, target],
      [exclude.to, servers],
      [exclude.from, client],
      [exclude.from, clients],
    ] as [PrefixSet, string][]) {
      assert.is(await who(), 'proxy');
      await set.add(prefix);
      assert.is(await who(), 'server', `${prefix} is excluded`);
      assert.equal(set.values(), [prefix]);
      await set.delete(prefix);
      assert.equal(set.values(), []);
    }
    assert.is(await who(), 'proxy');
    await exclude.to.add([elsewhere]);
    assert.is(await who(), 'proxy');
    await stop(server);
  });

  test(`${family}: a part of an excluded prefix can be deleted`, async () => {
    const server = await startProxy(lab, { tcp: [80], exclude: { to: [servers] } });
    const { exclude } = rulesOf(server);
    assert.is(await who(), 'server');
    await exclude.to.delete(target);
    assert.is(await who(), 'proxy');
    await exclude.to.add(target);
    assert.equal(exclude.to.values(), [servers]);
    assert.is(await who(), 'server');
    await stop(server);
  });

  // On a busy machine any call may take longer than a short time lasts: what must be there is there for long, what must be gone
  // is waited for.
  test(`${family}: with ttlMs the kernel takes it out again by itself`, async () => {
    const server = await startProxy(lab, { tcp: [80] });
    const { exclude } = rulesOf(server);
    await exclude.to.add(servers, { ttlMs: 60_000 });
    const [held] = elements(`exclude_to${family === 'ipv4' ? 4 : 6}`);
    assert.match(held ?? '', /timeout 1m expires \S+$/);
    assert.is(await who(), 'server');
    for (const ttlMs of [1, 100]) {
      await exclude.to.delete(servers);
      await exclude.to.add(servers, { ttlMs });
      await sleep(ttlMs + 50);
      assert.is(await who(), 'proxy');
      assert.equal(exclude.to.values(), []);
    }
    // What is there for ever stays so; what is there for a time stays for the longest of them.
    await exclude.to.add(target);
    await exclude.to.add(servers, { ttlMs: 200 });
    await exclude.to.add(elsewhere, { ttlMs: 60_000 });
    await exclude.to.add(elsewhere, { ttlMs: 100 });
    await sleep(250);
    assert.equal(exclude.to.values().sort(), [target, elsewhere].sort());
    assert.is(await who(), 'server');
    // A time that is over and one that begins anew do not get into each other's way.
    await exclude.to.delete(servers);
    for (let round = 0; round < 5; round++) {
      await exclude.to.add(servers, { ttlMs: 30 });
      await sleep(25 + 3 * round);
      await exclude.to.add(target, { ttlMs: 60_000 });
      assert.is(await who(), 'server');
      await exclude.to.delete(servers);
      assert.is(await who(), 'proxy');
    }
    await stop(server);
  });

  test(`${family}: a connection that is open is not touched when its destination is excluded`, async () => {
    const server = await startProxy(lab, { tcp: [80] });
    const call = await dial(lab, 'client', target, 80);
    await server.rules?.exclude.to.add(servers);
    await call.echo('still the proxy');
    assert.is(await who(), 'server');
    await call.hangUp();
    await stop(server);
  });

  test(`${family}: from and to, where they were given`, async () => {
    const server = await startProxy(lab, { tcp: [80], from: [elsewhere], to: [elsewhere] });
    const { from, to } = rulesOf(server);
    assert.is(await who(), 'server');
    await from?.add(clients);
    assert.is(await who(), 'server');
    await to?.add(target);
    assert.is(await who(), 'proxy');
    await from?.delete(client);
    assert.is(await who(), 'server');
    await stop(server);
  });

  test(`${family}: ports`, async () => {
    const server = await startProxy(lab, { tcp: [] });
    const { ports } = rulesOf(server);
    assert.is(await who(), 'server');
    await ports.tcp.add([80, '8000-8999']);
    assert.equal(ports.tcp.values(), [80, '8000-8999']);
    assert.is(await who(), 'proxy');
    assert.is(await ask(lab, 'client', target, 8443), 'proxy');
    await ports.tcp.delete(8443);
    assert.equal(ports.tcp.values(), [80, '8000-8442', '8444-8999']);
    assert.is(await ask(lab, 'client', target, 8443), 'server');
    await stop(server);
  });
}

test('a change is one batch, also over both families, and touches no rule and no counter', async () => {
  await using rules = await install(lab, { tcp: [80] });
  await ask(lab, 'client', addresses.server.ipv4, 80);
  const before = rulesListed();
  const { to } = rules.exclude;
  assert.is(await generationsDuring(() => to.add(['10.0.0.0/8', 'fd00::/8', '192.0.2.1', '::1'])), 1);
  assert.is(await generationsDuring(() => to.delete(['10.0.0.0/9', 'fd00::/9'])), 1);
  assert.is(await generationsDuring(() => to.add('10.128.0.0/10')), 0, 'nothing to change, nothing sent');
  assert.is(rulesListed(), before);
  assert.equal(to.values(), ['10.128.0.0/9', '192.0.2.1', '::1', 'fd80::/9']);
});

test('10,000 prefixes in one batch, and out again', async () => {
  await using rules = await install(lab, { tcp: [80] });
  const prefixes = Array.from(
    { length: 10_000 },
    (_, i) => `172.${16 + (i >> 12)}.${(i >> 4) & 255}.${(i & 15) * 16}/31`,
  );
  assert.is(await generationsDuring(() => rules.exclude.to.add(prefixes)), 1);
  assert.equal(rules.exclude.to.values(), prefixes);
  assert.is(elements('exclude_to4').length, 10_000);
  assert.is(await generationsDuring(() => rules.exclude.to.delete(prefixes.slice(1))), 1);
  assert.equal(elements('exclude_to4'), ['172.16.0.0/31']);
});

test('a set behaves as a set of addresses: random changes, compared with what the kernel lists', async () => {
  await using rules = await install(lab, { tcp: [] });
  let seed = 42;
  const random = (below: number) => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    return seed % below;
  };
  const expected = new Set<number>();
  const expand = (spec: string | number) => {
    const [start = 0, end = start] = String(spec).split('-').map(Number);
    return Array.from({ length: end - start + 1 }, (_, index) => start + index);
  };
  // All at once: they are carried out one after the other.
  await Promise.all(
    Array.from({ length: 400 }, () => {
      const start = 65535 - random(60);
      const spec = `${start}-${Math.min(65535, start + random(8))}`;
      const verb = random(5) < 3 ? 'add' : 'delete';
      for (const port of expand(spec)) expected[verb](port);
      return rules.ports.tcp[verb](spec, verb === 'add' && random(2) ? { ttlMs: 3_600_000 } : undefined);
    }),
  );
  const sorted = [...expected].sort();
  assert.ok(sorted.length > 10 && sorted.length < 60, 'neither nothing nor everything');
  assert.equal(rules.ports.tcp.values().flatMap(expand).sort(), sorted);
  assert.equal(
    elements('tcp_ports')
      .map((each) => each.replace(/ timeout.*/, ''))
      .flatMap(expand)
      .sort(),
    sorted,
  );
});

test('replace: exactly these, in one batch; what stays is not touched', async () => {
  await using rules = await install(lab, { tcp: [80], exclude: { to: ['192.0.2.0/24', '10.0.0.0/8'] } });
  const { to } = rules.exclude;
  await to.add('198.51.100.1', { ttlMs: 3_600_000 });
  assert.is(await generationsDuring(() => to.replace(['10.0.0.0/8', '10.1.0.0/16', '203.0.113.1', 'fd00::/8'])), 1);
  assert.equal(to.values(), ['10.0.0.0/8', '203.0.113.1', 'fd00::/8']);
  assert.equal([elements('exclude_to4'), elements('exclude_to6')], [['10.0.0.0/8', '203.0.113.1'], ['fd00::/8']]);
  assert.is(await generationsDuring(() => to.replace(to.values())), 0);
  await to.replace([]);
  assert.equal([to.values(), elements('exclude_to4')], [[], []]);
  await to.replace(['10.0.0.1/8']).then(
    () => assert.unreachable(),
    (error) => assert.match(error.message, /host bits/),
  );
});

test('somebody else changed a set that is not ours alone: it is written anew, as we know it', async () => {
  await using rules = await install(lab, {
    tcp: [80],
    lifetime: 'permanent',
    exclude: { to: ['10.0.0.0/8', '192.0.2.0/24'] },
  });
  const nft = (text: string) => lab.exec('router', 'nft', text);
  nft('delete element inet linux-tproxy-50080 exclude_to4 { 10.0.0.0/8 }');
  await rules.exclude.to.delete('10.0.0.0/9');
  assert.equal(elements('exclude_to4'), ['10.128.0.0/9', '192.0.2.0/24']);
  nft('add element inet linux-tproxy-50080 exclude_to4 { 198.51.100.0/24 }');
  await rules.exclude.to.add('198.51.0.0/16');
  assert.equal(elements('exclude_to4'), ['10.128.0.0/9', '192.0.2.0/24', '198.51.0.0/16']);
});

test('bad input is refused before anything is changed, a set that is not there with how to have it', async () => {
  await using rules = await install(lab, { tcp: [80] });
  const refused: [() => Promise<void>, string, RegExp][] = [
    [() => rules.exclude.to.add('10.0.0.1/8'), 'ERR_INVALID_ARG_VALUE', /exclude.to.*10\.0\.0\.0\/8/],
    [() => rules.exclude.to.add(['10.0.0.0/8', 'nonsense']), 'ERR_INVALID_ARG_VALUE', /nonsense/],
    [() => rules.exclude.from.delete(undefined as unknown as string), 'ERR_INVALID_ARG_TYPE', /exclude.from/],
    [() => rules.ports.tcp.add(70_000), 'ERR_OUT_OF_RANGE', /tcp.*70000/],
    [() => rules.ports.tcp.add(true as unknown as number), 'ERR_INVALID_ARG_VALUE', /tcp.*true/],
    [() => rules.exclude.to.add('10.0.0.0/8', { ttlMs: 0 }), 'ERR_OUT_OF_RANGE', /ttlMs/],
    [() => rules.exclude.to.add('10.0.0.0/8', { ttl: 1 } as object), 'ERR_INVALID_ARG_VALUE', /no option 'ttl'/],
    [() => rules.ports.udp.add(53), 'ERR_TPROXY_NO_SET', /udp: \[\]/],
  ];
  const generations = await generationsDuring(async () => {
    for (const [attempt, code, message] of refused)
      await attempt().then(
        () => assert.unreachable(`${message} was not refused`),
        (error) => {
          assert.is(error.code, code, error.message);
          assert.match(error.message, message);
        },
      );
  });
  assert.is(generations, 0);
  assert.equal(rules.exclude.to.values(), []);
});

test('prefixes of a family that is not installed change nothing', async () => {
  await using rules = await install(lab, { tcp: [80], families: ['ipv4'] });
  await rules.exclude.to.add(['fd00::/8', '10.0.0.0/8']);
  assert.equal(rules.exclude.to.values(), ['10.0.0.0/8']);
});

test('after uninstall a change fails', async () => {
  const rules = await install(lab, { tcp: [80] });
  await rules.uninstall();
  await rules.exclude.to.add('10.0.0.0/8').then(
    () => assert.unreachable(),
    (error) => assert.is(error.code, 'EBADF'),
  );
});

test.run();
