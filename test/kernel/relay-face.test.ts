/** What a relay shows of itself, and what can be decided for it: live counters, diagnostics channels, fixed decisions, preconnect. */
import diagnostics from 'node:diagnostics_channel';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  connectTransparent,
  createTransparentServer,
  type Flow,
  type Relay,
  type RelayClosed,
  type RelayOpened,
  relay,
  type TransparentServer,
  type TransparentServerOptions,
} from '../../src/index.js';
import type { Engine, RelayDecision } from '../../src/types.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { start, stop, stopAll } from '../helpers/proxies.js';
import { ask, dial, type Greeter, greet } from '../helpers/talk.js';
import { settled, until } from '../helpers/wait.js';

const test = suite('relay, its face');
let lab: Lab;
let netns: string;
let greeter: Greeter;
const target = addresses.server.ipv4;
const client = addresses.client.ipv4;

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  greeter = await greet(lab, 'server', 'server', 80);
});
test.after.each(stopAll);
test.after(() => lab.dispose());

const serve = (options: TransparentServerOptions): Promise<TransparentServer> =>
  start(createTransparentServer({ intercept: { tcp: [80, 81] }, netns, ...options }));

// ---- counters -------------------------------------------------------------------------------------------------------------

for (const engine of ['epoll', 'uring', 'copy'] satisfies Engine[])
  test(`${engine}: counters are live: bytes, how they went, and pipes while a receiver does not read`, async () => {
    const relays: Relay[] = [];
    const server = await serve({ relay: () => ({ kind: 'relay' }), engine });
    server.on('relay', (each) => relays.push(each));
    const call = await dial(lab, 'client', target, 80);
    await call.echo('hello');
    await until(() => relays.length === 1, 'the relay is told');
    const [one] = relays as [Relay];
    assert.is(one.engine, engine);
    assert.is(server.stats().engine, engine);
    assert.equal(server.stats().connections, { open: 1, total: 1 });
    assert.is(one.stats().bytesFromClient, 6n);
    assert.is(one.stats().spliced, 0n, 'short messages are copied');

    // Much, which comes back from the echo, and is not read: both directions stand still with bytes in them.
    call.socket.pause();
    for (let i = 0; i < 24; i++) call.socket.write(Buffer.alloc(1 << 20, i));
    const wantedPipes = engine === 'copy' ? 0 : 1;
    await until(() => one.stats().pipes >= wantedPipes && one.stats().bytesFromClient > 1n << 20n, 'pipes in use');
    await settled(() => one.stats().bytesFromClient + one.stats().bytesFromServer);
    assert.is(server.stats().pipes, one.stats().pipes);
    assert.is(one.stats().pipes > 0, engine !== 'copy');
    assert.is(one.stats().spliced > 0n, engine !== 'copy');

    call.socket.resume();
    await until(() => one.stats().bytesFromServer >= 24n << 20n, 'all of it has come back');
    await until(() => one.stats().pipes === 0, 'an idle relay holds none');
    const { bytesFromClient, bytesFromServer, spliced, copied } = one.stats();
    assert.is(bytesFromClient + bytesFromServer, spliced + copied);
    await call.hangUp();
    await one.closed;
    assert.equal(server.stats().connections, { open: 0, total: 1 });
    assert.is(server.stats().pipes, 0);
    await stop(server);
  });

test('pipes of a relay that is destroyed are not counted any more', async () => {
  const relays: Relay[] = [];
  const server = await serve({ relay: () => ({ kind: 'relay' }), engine: 'epoll' });
  server.on('relay', (each) => relays.push(each));
  const call = await dial(lab, 'client', target, 80);
  call.socket.pause();
  for (let i = 0; i < 24; i++) call.socket.write(Buffer.alloc(1 << 20, i));
  await until(() => server.stats().pipes > 0, 'pipes in use');
  relays[0]?.destroy();
  await relays[0]?.closed;
  assert.is(server.stats().pipes, 0);
  await call.hangUp();
  await stop(server);
});

// ---- diagnostics channels ---------------------------------------------------------------------------------------------------

function subscribe() {
  const opened: RelayOpened[] = [];
  const closed: RelayClosed[] = [];
  const onOpen = (message: unknown) => void opened.push(message as RelayOpened);
  const onClose = (message: unknown) => void closed.push(message as RelayClosed);
  diagnostics.subscribe('linux-tproxy.relay.open', onOpen);
  diagnostics.subscribe('linux-tproxy.relay.close', onClose);
  return {
    opened,
    closed,
    unsubscribe() {
      diagnostics.unsubscribe('linux-tproxy.relay.open', onOpen);
      diagnostics.unsubscribe('linux-tproxy.relay.close', onClose);
    },
  };
}

const ways: Record<string, TransparentServerOptions> = {
  'relay: true': { relay: true },
  'a fixed decision': { relay: { kind: 'relay', from: 'proxy' } },
  'a decision': { relay: () => ({ kind: 'relay' }) },
  'relay()': {},
};
for (const [what, options] of Object.entries(ways))
  test(`channels: ${what}: open and close, both ends, and the result`, async () => {
    const { opened, closed, unsubscribe } = subscribe();
    const server = await serve({ ...options, engine: 'epoll', pauseOnConnect: true });
    server.on('connection', async (socket) =>
      relay(socket, await connectTransparent({ address: target, port: 80, netns }), { engine: 'epoll' }),
    );
    const call = await dial(lab, 'client', target, 80);
    await call.echo('hello');
    await until(() => opened.length === 1, 'open');
    const [open] = opened as [RelayOpened];
    const { id, ...ends } = open;
    assert.equal(ends, {
      engine: 'epoll',
      source: { family: 'ipv4', address: client, port: call.socket.localPort },
      originalDestination: { family: 'ipv4', address: target, port: 80 },
    });
    assert.is(closed.length, 0);
    call.socket.end();
    await until(() => closed.length === 1, 'close');
    const { result, ...rest } = closed[0] as RelayClosed;
    assert.equal(rest, open);
    assert.is(result.reason, 'end');
    assert.is(result.bytesFromClient, 6n);

    const second = await dial(lab, 'client', target, 80);
    await until(() => opened.length === 2, 'open');
    assert.ok((opened[1] as RelayOpened).id > id);
    await second.hangUp();
    await until(() => closed.length === 2, 'close');
    // One that never opens is neither told to open nor to close.
    assert.is(await ask(lab, 'client', target, 81), what === 'relay()' ? 'server' : 'ECONNRESET');
    if (what !== 'relay()') assert.equal([opened.length, closed.length], [2, 2]);
    unsubscribe();
    await stop(server);
  });

test('channels: who subscribes later hears what opens from the next second on, and JavaScript nothing before', async () => {
  const server = await serve({ relay: true });
  const early = await dial(lab, 'client', target, 80);
  const { opened, closed, unsubscribe } = subscribe();
  await sleep(1200);
  const late = await dial(lab, 'client', target, 80);
  await until(() => opened.length === 1, 'open');
  assert.is(opened[0]?.source.port, late.socket.localPort);
  await early.hangUp();
  await late.hangUp();
  await until(() => closed.length === 1, 'close');
  unsubscribe();
  await sleep(1200);
  const silent = await dial(lab, 'client', target, 80);
  await silent.hangUp();
  await until(() => server.stats().connections.open === 0, 'the end of all');
  assert.equal([opened.length, closed.length], [1, 1]);
  await stop(server);
});

// ---- fixed decisions ----------------------------------------------------------------------------------------------------------

test('a decision for all connections: another destination, own source, the same source port', async () => {
  await greet(lab, 'server', 'other', 8080);
  const to = { address: target, port: 8080 };
  for (const engine of ['epoll', 'uring'] as const)
    for (const [decision, who, from, samePort] of [
      [{ kind: 'relay' }, 'server', client, false],
      [{ kind: 'relay', to }, 'other', client, false],
      [{ kind: 'relay', to, from: 'proxy' }, 'other', addresses.routerUpstream.ipv4, false],
      [{ kind: 'relay', sourcePort: 'preserve' }, 'server', client, true],
      [{ kind: 'relay', from: { address: '10.77.1.99', port: 0 } }, 'server', '10.77.1.99', false],
      [{ kind: 'relay', to, from: { address: '10.77.1.99', port: 4321 } }, 'other', '10.77.1.99', false],
    ] as const) {
      const server = await serve({ relay: decision, engine });
      const call = await dial(lab, 'client', target, 80);
      assert.is(`${call.who} ${call.sawAddress}`, `${who} ${from}`, JSON.stringify(decision));
      assert.is(call.sawPort === call.socket.localPort, samePort, JSON.stringify(decision));
      if (typeof decision === 'object' && 'from' in decision && typeof decision.from === 'object' && decision.from.port)
        assert.is(call.sawPort, decision.from.port);
      await call.hangUp();
      await stop(server);
    }
});

test('a fixed decision to another family from the client cannot be, and is counted', async () => {
  const server = await serve({ relay: { kind: 'relay', to: { address: addresses.server.ipv6, port: 80 } } });
  assert.is(await ask(lab, 'client', target, 80), 'ECONNRESET');
  assert.is(await ask(lab, 'client', addresses.server.ipv6, 80), 'server');
  assert.is(server.stats().connectErrors, 1);
  await stop(server);
});

test('fixed decisions that cannot be meant are refused when the server is made', () => {
  const to = { address: target, port: 80 };
  for (const [decision, message] of [
    [{ kind: 'reset' }, /'relay'/],
    [{ kind: 'relay', to: { address: 'localhost', port: 80 } }, /IP address/],
    [{ kind: 'relay', to: { address: target, port: 0 } }, /port/],
    [{ kind: 'relay', to, from: { address: '::1', port: 0 } }, /same family/],
    [{ kind: 'relay', sourcePort: 'any' }, /sourcePort/],
    [{ kind: 'relay', proxyProtocol: 3 }, /proxyProtocol must be 1 or 2/],
    [{ kind: 'relay', tos: to }, /no option 'tos'/],
  ] as const)
    assert.throws(() => createTransparentServer({ relay: decision as never }), message, JSON.stringify(decision));
  assert.throws(() => createTransparentServer({ relay: null as never }), /relay must be/);
});

// ---- preconnect ---------------------------------------------------------------------------------------------------------------

for (const engine of ['epoll', 'uring'] as const) {
  const preconnecting = async (decide: (flow: Flow) => Promise<RelayDecision>) =>
    serve({ relay: decide, preconnect: true, engine });

  test(`${engine}: preconnect: where the server speaks first, a peek with a long time ends at once`, async () => {
    const peeked: string[] = [];
    const server = await preconnecting(async (flow) => {
      peeked.push(String(await flow.peek(5, 60_000)));
      peeked.push(String(await flow.peek(5, 60_000)));
      return { kind: 'relay' };
    });
    for (const family of ['ipv4', 'ipv6'] as const) {
      const call = await dial(lab, 'client', addresses.server[family], 80);
      assert.is(`${call.who} ${call.sawAddress}`, `server ${addresses.client[family]}`);
      await call.echo('all of it');
      await call.hangUp();
    }
    assert.equal(peeked, ['', '', '', '']);
    await until(() => server.stats().connections.open === 0, 'the end');
    await stop(server);
  });

  test(`${engine}: preconnect: the connection of before is the one that is used`, async () => {
    let decide = (_: RelayDecision) => {};
    const decision = new Promise<RelayDecision>((resolve) => {
      decide = resolve;
    });
    const server = await preconnecting(() => decision);
    await until(() => greeter.sockets.size === 0, 'the connections of before have gone');
    const dialled = dial(lab, 'client', target, 80);
    await until(() => greeter.sockets.size === 1, 'the server is reached before the decision');
    assert.equal(server.stats().bytesFromServer, 0n);
    decide({ kind: 'relay' });
    const call = await dialled;
    assert.is(greeter.sockets.size, 1);
    await call.echo('hello');
    await call.hangUp();
    await stop(server);
  });

  test(`${engine}: preconnect: decided otherwise, that connection is gone; a refused one is told`, async () => {
    const port = engine === 'uring' ? 8081 : 8082;
    await greet(lab, 'server', 'elsewhere', port);
    for (const [decision, who] of [
      [{ kind: 'relay', to: { address: target, port } }, 'elsewhere'],
      [{ kind: 'relay', from: 'proxy' }, 'server'],
      [{ kind: 'reset' }, 'ECONNRESET'],
      [{ kind: 'close' }, 'E_END'],
    ] as const) {
      const server = await preconnecting(async (flow) => {
        await flow.peek(1, 30);
        return decision;
      });
      assert.is(await ask(lab, 'client', target, 80), who, JSON.stringify(decision));
      await until(() => greeter.sockets.size === 0, 'the server has none left');
      await stop(server);
    }
    const relays: Relay[] = [];
    const server = await preconnecting(async (flow) => {
      await flow.peek(1, 60_000); // ends with the refusal
      return { kind: 'relay' };
    });
    server.on('relay', (each) => relays.push(each));
    assert.is(await ask(lab, 'client', target, 81), 'ECONNRESET');
    assert.is(((await relays[0]?.closed)?.error as NodeJS.ErrnoException | undefined)?.code, 'ECONNREFUSED');
    assert.is(server.stats().connectErrors, 1);
    await stop(server);
  });
}

test.run();
