/**
 * `sourcePort: 'preserve'`: both legs of a connection have the same addresses and ports. With packets, beside a stateful
 * firewall and masquerade, IPv4 and IPv6.
 */
import { once } from 'node:events';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createTransparentServer, installIntercept, type RelayDecision } from '../../src/index.js';
import type { InterceptOptions } from '../../src/types.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { rulesOf, start, stop, stopAll } from '../helpers/proxies.js';
import { ask, type Dialled, dial, greet, greeting, synRetransmissions } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';

const test = suite('preserve');
let lab: Lab;
let netns: string;
test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  await greet(lab, 'server', 'server', 80);
  await greet(lab, 'router', 'router', 9005);
});
test.after.each(async () => {
  await stopAll();
  lab.exec('router', 'nft', 'flush ruleset');
});
test.after(() => lab.dispose());

/** Drops what conntrack cannot make sense of, wherever it is; with masquerade towards the server or without. */
function firewall({ masquerade }: { masquerade: boolean }): void {
  const drops = ['input', 'output', 'forward'].map(
    (hook) => `chain ${hook} { type filter hook ${hook} priority 0; ct state invalid counter drop; }`,
  );
  const nat = masquerade
    ? 'chain nat { type nat hook postrouting priority srcnat; oifname "srv0" masquerade; }'
    : 'chain nat { type nat hook postrouting priority srcnat; }';
  lab.exec('router', 'nft', `table inet firewall { ${drops.join('\n')}\n${nat}; }`);
}
const invalid = () =>
  [...lab.exec('router', 'nft', 'list table inet firewall').matchAll(/invalid counter packets (\d+)/g)].reduce(
    (sum, [, packets]) => sum + Number(packets),
    0,
  );
const cookies = (value: 1 | 2) => lab.exec('router', 'sysctl', '-qw', `net.ipv4.tcp_syncookies=${value}`);

const preserving = (intercept: InterceptOptions) =>
  start(
    createTransparentServer({
      intercept: { tcp: [80], ...intercept },
      netns,
      relay: (): RelayDecision => ({ kind: 'relay', sourcePort: 'preserve' }),
    }),
  );

async function hangUp(call: Dialled): Promise<void> {
  call.socket.end();
  if (!call.socket.destroyed) await once(call.socket, 'close');
}

for (const family of ['ipv4', 'ipv6'] as const) {
  const client = addresses.client[family];
  const target = addresses.server[family];

  for (const masquerade of [false, true])
    for (const syncookies of [1, 2] as const)
      test(`${family}: whole transfers through a stateful firewall, masquerade ${masquerade}, syncookies ${syncookies}`, async () => {
        firewall({ masquerade });
        cookies(syncookies);
        const server = await preserving({ zone: 'auto' });
        assert.is(rulesOf(server).plan.zone, 84);
        for (let round = 0; round < 10; round++) {
          const call = await dial(lab, 'client', target, 80);
          assert.equal(
            [call.who, call.sawAddress, call.sawPort],
            ['server', masquerade ? addresses.routerUpstream[family] : client, call.socket.localPort],
          );
          await call.echo('x'.repeat(200_000));
          await hangUp(call);
        }
        assert.is(invalid(), 0);
        await stop(server);
        cookies(1);
      });

  test(`${family}: without the zone the two legs are one connection to conntrack, which is never masqueraded`, async () => {
    firewall({ masquerade: true });
    lab.exec('router', 'nft', 'delete chain inet firewall input; delete chain inet firewall output');
    const server = await preserving({});
    const call = await dial(lab, 'client', target, 80);
    assert.is(call.sawAddress, client);
    await hangUp(call);
    await stop(server);
  });

  test(`${family}: the same ports again at once, with TIME_WAIT of both legs in the way`, async () => {
    firewall({ masquerade: false });
    const server = await preserving({ zone: 'auto' });
    for (let round = 0; round < 4; round++) {
      const call = await dial(lab, 'client', target, 80, { localAddress: client, localPort: 41000 });
      assert.equal([call.sawAddress, call.sawPort], [client, 41000]);
      await call.echo(`round ${round}`);
      await hangUp(call);
    }
    assert.is(invalid(), 0);
    await stop(server);
  });

  test(`${family}: the tuple of a foreign listener's TIME_WAIT again at once`, async () => {
    firewall({ masquerade: false });
    const server = await start(createTransparentServer({ intercept: { zone: 84 }, netns }));
    const foreign = createTransparentServer({ netns }, (socket) => {
      socket.on('error', () => {});
      socket.end('foreign\n'); // we close first, so the TIME_WAIT is ours
    });
    await start(foreign, 9001, target);
    for (let round = 0; round < 3; round++) {
      const repeated = synRetransmissions(lab, 'client');
      const call = await dial(lab, 'client', target, 9001, { localAddress: client, localPort: 41001 });
      assert.is(call.who, 'foreign');
      await hangUp(call);
      await until(() => lab.exec('router', 'ss', '-tanH', 'state', 'time-wait').includes(':41001'), 'it is there');
      assert.is(synRetransmissions(lab, 'client'), repeated);
    }
    assert.is(invalid(), 0);
    await stop(foreign);
    await stop(server);
  });

  for (const syncookies of [1, 2] as const)
    test(`${family}: listeners on foreign addresses beside it, and what is not intercepted; syncookies ${syncookies}`, async () => {
      firewall({ masquerade: false });
      cookies(syncookies);
      for (const intercept of [{ tcp: [80, 9001] }, { tcp: undefined }]) {
        const server = await start(
          createTransparentServer({
            intercept: { zone: 84, ...(intercept.tcp && { tcp: intercept.tcp }) },
            netns,
          }),
        );
        const foreign = createTransparentServer({ netns }, (socket) => greeting('foreign', socket));
        await start(foreign, 9001, target);
        const call = await dial(lab, 'client', target, 9001);
        assert.is(call.who, 'foreign');
        await call.echo('x'.repeat(100_000));
        await hangUp(call);
        assert.is(await ask(lab, 'client', addresses.router[family], 9005), 'router');
        assert.is(await ask(lab, 'router', target, 80), 'server');
        assert.is(await ask(lab, 'client', target, 9009), 'ECONNREFUSED');
        await stop(foreign);
        await stop(server);
      }
      // A cookie that nobody asked for any more is the one packet that may be out of place.
      assert.ok(invalid() <= (syncookies === 2 ? 1 : 0), `${invalid()} invalid`);
      cookies(1);
    });
}

test('a server whose every connection keeps its port has the zone by itself', async () => {
  firewall({ masquerade: false });
  for (const [relay, zone] of [
    [{ kind: 'relay', sourcePort: 'preserve' }, 84],
    [{ kind: 'relay' }, undefined],
  ] as const) {
    const server = await start(createTransparentServer({ intercept: { tcp: [80] }, netns, relay }));
    assert.is(rulesOf(server).plan.zone, zone);
    const call = await dial(lab, 'client', addresses.server.ipv4, 80);
    assert.is(call.sawPort === call.socket.localPort, zone !== undefined);
    await hangUp(call);
    await stop(server);
  }
});

test('auto: a zone only where the rules of the host use conntrack, in nft or in iptables', async () => {
  const zoneOf = async (zone: number | 'auto') => {
    await using rules = await installIntercept({ port: 50080, tcp: [80], zone, netns });
    assert.equal(await rules.verify(), { intact: true, missing: [] });
    return rules.plan.zone;
  };
  assert.is(await zoneOf('auto'), undefined);
  assert.is(await zoneOf(7), 7);
  for (const rules of ['ct state new accept', 'meta mark set ct mark']) {
    lab.exec('router', 'nft', `table inet x { chain c { type filter hook input priority 0; ${rules}; }; }`);
    assert.is(await zoneOf('auto'), 84);
    lab.exec('router', 'nft', 'flush ruleset');
  }
  lab.exec('router', 'iptables-nft', '-A', 'INPUT', '-m', 'conntrack', '--ctstate', 'INVALID', '-j', 'DROP');
  assert.is(await zoneOf('auto'), 84);
  lab.exec('router', 'nft', 'flush ruleset');
});

test.run();
