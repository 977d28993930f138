/** Ingress interfaces that go away and come back under their name: rules know them by it, so nothing has to be repaired. */
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type InterceptError, installIntercept, listInstalled } from '../../src/index.js';
import { backends } from '../helpers/backends.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { rulesOf, startProxy, stop, stopAll } from '../helpers/proxies.js';
import { ask, greet } from '../helpers/talk.js';

const test = suite('interfaces');
let lab: Lab;
let late: Lab;

test.before(async () => {
  lab = await createLab();
  late = { ...lab, netns: () => '/run/netns/late' };
  await greet(lab, 'server', 'server', 80);
});
test.after.each(async () => {
  await stopAll();
  const remove = 'ip -n late link delete eth0; for name in late elsewhere; do ip netns delete $name; done';
  lab.exec('router', 'sh', '-c', `{ ${remove}; } 2>/dev/null; true`);
});
test.after(() => lab.dispose());

const sh = (script: string) => lab.exec('router', 'sh', '-euc', script);
const addressed = `ip address replace 10.79.0.1/24 dev late0; ip address replace fd79::1/64 dev late0 nodad; ip link set late0 up
  ip netns exec late ping -c 1 -W 3 fd79::1 >/dev/null || true`;
/** A second client, behind late0. */
const come = (index: number) =>
  sh(`ip netns add late
    ip link add late0 index ${index} type veth peer name eth0 netns late
    ip -n late address add 10.79.0.2/24 dev eth0; ip -n late address add fd79::2/64 dev eth0 nodad
    ip -n late link set eth0 up; ip -n late link set lo up
    ip -n late route add default via 10.79.0.1; ip -n late -6 route add default via fd79::1
    ${addressed}`);
const answers = (from: Lab) =>
  Promise.all((['ipv4', 'ipv6'] as const).map((family) => ask(from, 'client', addresses.server[family], 80)));
const proxied = ['proxy', 'proxy'];
const direct = ['server', 'server'];

/** How it goes away, what of its traffic is seen then, and how it comes back. */
const ways: readonly (readonly [
  how: string,
  go: string,
  meanwhile: readonly string[] | undefined,
  back: () => void,
])[] = [
  ['deleted', 'ip link delete late0; ip netns delete late', undefined, () => come(402)],
  ['renamed', 'ip link set late0 name other0', direct, () => sh('ip link set other0 name late0')],
  [
    'moved to another namespace',
    'ip netns add elsewhere; ip link set late0 netns elsewhere',
    undefined,
    () => sh(`ip -n elsewhere link set late0 netns router; ${addressed}`),
  ],
  ['down', 'ip link set late0 down', undefined, () => sh(addressed)],
];

for (const backend of backends)
  for (const [how, go, meanwhile, back] of ways)
    test(`${backend}: one that is named in the options is ${how}, and comes back`, async () => {
      come(401);
      const server = await startProxy(lab, { backend, tcp: [80], interfaces: ['late0'] });
      const told: unknown[] = [];
      server.on('repaired', (report) => told.push(report)).on('error', (error) => told.push(error));
      const isWhole = async () => {
        assert.equal(await rulesOf(server).verify(), { intact: true, missing: [] });
        const [status] = (await listInstalled({ netns: lab.netns('router') })).installed;
        assert.equal([status?.intact, status?.sets['interfaces']], [true, ['late0']]);
      };
      assert.equal(await answers(late), proxied);
      assert.equal(await answers(lab), direct);
      sh(go);
      await isWhole();
      if (meanwhile) assert.equal(await answers(late), meanwhile);
      back();
      assert.equal(await answers(late), proxied);
      assert.equal(await answers(lab), direct);
      await sleep(50);
      await isWhole();
      assert.equal(told, []);
      await stop(server);
    });

for (const backend of backends)
  test(`${backend}: none is named, and one appears, goes, and appears again`, async () => {
    const server = await startProxy(lab, { backend, tcp: [80] });
    for (const index of [401, 402]) {
      come(index);
      assert.equal(await answers(late), proxied);
      sh('ip link delete late0; ip netns delete late');
    }
    await stop(server);
  });

test('one that is not there yet is refused, with what can be done', async () => {
  const netns = lab.netns('router');
  const { code, message } = await installIntercept({ port: 50080, tcp: [80], interfaces: ['late0'], netns }).then(
    () => assert.unreachable() as never,
    (error: InterceptError) => error,
  );
  assert.is(code, 'ERR_TPROXY_NO_INTERFACE');
  assert.match(message, /no interface 'late0' here, only lo.* has to be there now; left out, interfaces means all/);
});

test.run();
