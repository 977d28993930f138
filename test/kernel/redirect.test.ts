/** `mode: 'redirect'`, and where clients meant to go under REDIRECT and DNAT: with packets, IPv4 and IPv6. */
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  createTransparentServer,
  type Flow,
  installIntercept,
  listInstalled,
  originalDestination,
  type RelayDecision,
  type TransparentSocket,
  uninstallIntercept,
} from '../../src/index.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { rulesOf, start, stop, stopAll } from '../helpers/proxies.js';
import { ask, dial, greet, greeting } from '../helpers/talk.js';

const test = suite('redirect');
const families = ['ipv4', 'ipv6'] as const;
const intercept = { tcp: [80], mode: 'redirect' } as const;
let lab: Lab;
let netns: string;
let before: string;

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  for (const port of [80, 9002]) await greet(lab, 'server', 'server', port);
  before = lab.snapshot('router');
});
test.after.each(stopAll);
test.after(() => lab.dispose());

const proxy = (options = {}) =>
  createTransparentServer({ intercept, netns, ...options }, (socket) => greeting('proxy', socket));

for (const family of families) {
  const target = addresses.server[family];
  const own = addresses.routerUpstream[family];

  test(`${family}: listed ports come to the proxy, which knows where they meant to go; others go direct`, async () => {
    const server = await start(proxy());
    const seen = once(server, 'connection') as Promise<[TransparentSocket]>;
    const call = await dial(lab, 'client', target, 80);
    assert.is(call.who, 'proxy');
    const [socket] = await seen;
    const destination = { family, address: target, port: 80 };
    assert.equal(socket.originalDestination, destination);
    assert.equal(originalDestination(socket), { ...destination, from: 'conntrack' });
    await call.echo('both ways');
    assert.is(await ask(lab, 'client', target, 9002), 'server');
    assert.is(await ask(lab, 'router', target, 80), 'server', 'what this host sends is not intercepted');
    assert.is((await rulesOf(server).counters()).intercepted.packets, 1n);
    await call.hangUp();
    await stop(server);
    assert.is(await ask(lab, 'client', target, 80), 'server');
    assert.is(lab.snapshot('router'), before);
  });

  test(`${family}: open connections and the router's own services are left alone`, async () => {
    const own80 = await greet(lab, 'router', 'router', 80);
    const open = await dial(lab, 'client', target, 80);
    const server = await start(proxy());
    await open.echo('installed');
    assert.is(await ask(lab, 'client', addresses.router[family], 80), 'router');
    await stop(server);
    await open.echo('uninstalled');
    await open.hangUp();
    await own80.close();
  });

  test(`${family}: relay: true goes on from this host's address, and never in a circle`, async () => {
    const server = await start(proxy({ relay: true }));
    const call = await dial(lab, 'client', target, 80);
    assert.equal([call.who, call.sawAddress], ['server', own]);
    await call.echo('hello');
    await call.hangUp();
    assert.is(await ask(lab, 'client', addresses.router[family], 50080), 'ECONNRESET');
    assert.is(server.stats().connectErrors, 1);
    await stop(server);
  });

  test(`${family}: decisions see the original destination, and go on from the proxy's address alone`, async () => {
    const flows: Flow[] = [];
    const server = await start(
      proxy({
        relay: (flow: Flow): RelayDecision => {
          flows.push(flow);
          return flows.length === 1 ? { kind: 'relay' } : { kind: 'relay', from: 'client' };
        },
      }),
    );
    const call = await dial(lab, 'client', target, 80);
    assert.equal([call.who, call.sawAddress], ['server', own]);
    assert.equal(flows[0]?.originalDestination, { family, address: target, port: 80 });
    await call.hangUp();
    const refused = once(server, 'error').catch((error) => [error]);
    assert.is(await ask(lab, 'client', target, 80), 'ECONNRESET');
    assert.match((await refused)[0].message, "'proxy' with mode 'redirect'");
    await stop(server);
  });

  test(`${family}: without any rule of ours: REDIRECT and DNAT of the administrator, TPROXY, and none`, async () => {
    const server = await start(createTransparentServer({ netns }, (socket) => greeting('proxy', socket)));
    // conntrack remembers a connection for two minutes, and would be asked for it by the next one of the same ports.
    let localPort = 20000;
    const accepted = async (address: string, port: number) => {
      const seen = once(server, 'connection') as Promise<[Socket]>;
      const call = await dial(lab, 'client', address, port, {
        localAddress: addresses.client[family],
        localPort: localPort++,
      });
      assert.is(call.who, 'proxy');
      const [socket] = await seen;
      const found = originalDestination(socket);
      assert.equal((socket as TransparentSocket).originalDestination.address, found.address);
      await call.hangUp();
      return found;
    };
    const ip = family === 'ipv4' ? 'ip' : 'ip6';
    const to = family === 'ipv4' ? addresses.router.ipv4 : `[${addresses.router.ipv6}]`;
    const nft = (rules: string) =>
      lab.exec(
        'router',
        'nft',
        `table inet theirs { chain c { type nat hook prerouting priority dstnat; ${rules}; }; }`,
      );
    nft('tcp dport 80 redirect to :50080');
    assert.equal(await accepted(target, 80), { family, address: target, port: 80, from: 'conntrack' });
    lab.exec('router', 'nft', 'flush ruleset');
    nft(`tcp dport 81 dnat ${ip} to ${to}:50080`);
    assert.equal(await accepted(target, 81), { family, address: target, port: 81, from: 'conntrack' });
    lab.exec('router', 'nft', 'flush ruleset');
    const address = addresses.router[family];
    assert.equal(await accepted(address, 50080), { family, address, port: 50080, from: 'sockname' });
    const rules = await installIntercept({ port: 50080, tcp: [80], netns });
    assert.equal(await accepted(target, 80), { family, address: target, port: 80, from: 'sockname' });
    await rules.uninstall();
    await stop(server);
  });
}

test('live sets, verify, status, repair; permanent, by name', async () => {
  const rules = await installIntercept({ ...intercept, port: 50080, lifetime: 'permanent', netns });
  const server = await start(createTransparentServer({ netns }, (socket) => greeting('proxy', socket)));
  const target = addresses.server.ipv4;
  await rules.exclude.to.add(target);
  assert.is(await ask(lab, 'client', target, 80), 'server');
  await rules.exclude.to.delete(target);
  await rules.ports.tcp.add(9002);
  assert.is(await ask(lab, 'client', target, 9002), 'proxy');
  assert.equal(await rules.verify(), { intact: true, missing: [] });
  const { installed } = await listInstalled({ netns });
  assert.equal(
    installed.map(({ name, mode, port, onDown, intact, sets }) => ({ name, mode, port, onDown, intact, sets })),
    [
      {
        name: '50080',
        mode: 'redirect',
        port: 50080,
        onDown: 'closed',
        intact: true,
        sets: { tcp_ports: ['80', '9002'], exclude_to4: [], exclude_to6: [], exclude_from4: [], exclude_from6: [] },
      },
    ],
  );
  const repaired = once(rules, 'repaired');
  await sleep(50);
  lab.exec('router', 'nft', 'delete', 'table', 'inet', 'linux-tproxy-50080');
  const [report] = await repaired;
  assert.equal(report.repaired, ['table inet linux-tproxy-50080']);
  assert.is(await ask(lab, 'client', target, 80), 'proxy');
  await rules.uninstall();
  assert.is(lab.snapshot('router'), before);
  const again = await installIntercept({ ...intercept, port: 50080, lifetime: 'permanent', repair: false, netns });
  assert.is(again.plan.rules.length, 0);
  assert.is(await uninstallIntercept({ name: '50080', netns }), true);
  assert.is(lab.snapshot('router'), before);
  await stop(server);
});

test('needs no capability but those for the rules: the listener is an ordinary one', async () => {
  const server = await start(proxy());
  assert.not.match(lab.exec('router', 'ss', '-tlneH', 'sport = :50080'), /transparent/);
  await stop(server);
});

test('beside an interception by TPROXY in the same namespace', async () => {
  const redirecting = await start(proxy({ intercept: { ...intercept, tcp: [9002] } }));
  const rules = await installIntercept({ port: 50081, tcp: [80], netns });
  const other = await start(
    createTransparentServer({ netns }, (socket) => greeting('tproxy', socket)),
    50081,
  );
  const target = addresses.server.ipv4;
  assert.is(await ask(lab, 'client', target, 80), 'tproxy');
  assert.is(await ask(lab, 'client', target, 9002), 'proxy');
  await stop(redirecting);
  await rules.uninstall();
  await stop(other);
  assert.is(lab.snapshot('router'), before);
});

test.run();
