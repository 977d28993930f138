/** The native relay over loopback: bytes, ends, resets, urgent data, and engines that change their ways. Needs a network namespace with `lo` up. */
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes, randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import type * as net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { Counter } from '../../src/native.js';
import type { Engine } from '../../src/types.js';
import { python, start } from '../helpers/programs.js';
import { type Body, relaySuite } from '../helpers/relay-suite.js';
import {
  connected,
  dial,
  drain,
  echo,
  ended,
  endOf,
  newCounters,
  pour,
  pourAll,
  readAll,
  roundTrips,
  serve,
  stalls,
  takeOver,
  until,
} from '../helpers/relays.js';

const MiB = 1024 * 1024;
const { test, testWith, run } = relaySuite('relay');

for (const wanted of ['epoll', 'uring', 'uring-splice', 'copy'] satisfies Engine[]) {
  const it = (what: string, body: Body) => testWith(wanted, what, body);

  it('64 MiB of random chunks both ways at once arrive byte for byte', async ({ relays, engine }) => {
    const answers: Promise<string>[] = [];
    const reads: ReturnType<typeof drain>[] = [];
    const server = await serve((socket) => {
      reads.push(drain(socket));
      answers.push(pourAll(socket, 64 * MiB, 2));
    });
    const { port, counters } = relays.relayTo(server.port, engine);
    const client = await dial(port);
    const [sent, received] = await Promise.all([pourAll(client, 64 * MiB, 1), drain(client)]);
    assert.equal(await reads[0], { bytes: 64 * MiB, hash: sent });
    assert.equal(received, { bytes: 64 * MiB, hash: await answers[0] });
    assert.equal(ended(await relays.event('ended')), ['end', BigInt(64 * MiB), BigInt(64 * MiB)]);
    const [spliced, copied] = [counters[Counter.spliced], counters[Counter.copied]] as [bigint, bigint];
    assert.is(spliced + copied, BigInt(128 * MiB));
    // The first reads are copied, until they are seen to be large.
    if (engine === 'copy') assert.is(spliced, 0n);
    else assert.ok(spliced > copied * 10n, `${spliced} spliced, ${copied} copied`);
    assert.equal([counters[Counter.connectionsTotal], counters[Counter.connectionsOpen]], [1n, 0n]);
  });

  it('many small chunks with pauses, 4 connections at once, arrive byte for byte', async ({ relays, engine }) => {
    const server = await echo();
    const { port } = relays.relayTo(server.port, engine);
    await Promise.all(
      [1, 2, 3, 4].map(async (seed) => {
        const client = await dial(port);
        const reading = drain(client);
        const sent = await pour(client, 300_000, seed, 600);
        await sleep(5);
        client.end();
        assert.equal(await reading, { bytes: 300_000, hash: sent });
      }),
    );
  });

  it('the client ends first: the server answers after that', async ({ relays, engine }) => {
    const server = await serve(async (socket) => {
      const request = await readAll(socket);
      await sleep(20);
      socket.end(`${request} answered`);
    });
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.end('question');
    assert.is(`${await readAll(client)}`, 'question answered');
    assert.equal(ended(await relays.event('ended')), ['end', 8n, 17n]);
  });

  it('the server ends first: the client goes on', async ({ relays, engine }) => {
    let got: Promise<Buffer> | undefined;
    const server = await serve((socket) => {
      got = readAll(socket);
      socket.end('bye');
    });
    const client = await dial(relays.relayTo(server.port, engine).port);
    assert.is(`${await readAll(client)}`, 'bye');
    client.write('still ');
    await sleep(20);
    client.end('here');
    assert.equal(ended(await relays.event('ended')), ['end', 10n, 3n]);
    assert.is(`${await got}`, 'still here');
  });

  it('a connection without a byte ends cleanly', async ({ relays, engine }) => {
    const server = await serve((socket) => socket.resume().on('end', () => socket.end()));
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.end();
    assert.is((await readAll(client)).length, 0);
    assert.equal(ended(await relays.event('ended')), ['end', 0n, 0n]);
  });

  it('a reset by the client reaches the server', async ({ relays, engine }) => {
    let seen: Promise<string> | undefined;
    const server = await serve((socket) => {
      seen = endOf(socket);
    });
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.write('x');
    await until(() => seen !== undefined, 'the server has the connection');
    await sleep(20);
    client.resetAndDestroy();
    assert.is((await relays.event('ended')).reason, 'reset');
    assert.is(await seen, 'ECONNRESET');
  });

  it('a reset by the server reaches the client', async ({ relays, engine }) => {
    const server = await serve((socket) => socket.once('data', () => socket.resetAndDestroy()));
    const client = await dial(relays.relayTo(server.port, engine).port);
    const seen = endOf(client);
    client.write('x');
    assert.is(await seen, 'ECONNRESET');
    assert.is((await relays.event('ended')).reason, 'reset');
  });

  it('a reset reaches the other side although that one is slow', async ({ relays, engine }) => {
    // Not a server in Node: libuv takes the hang-up behind unread bytes for a clean end.
    const script = `
import socket, sys, time
s = socket.create_server(('127.0.0.1', 0))
print('{"port": %d}' % s.getsockname()[1], flush=True)
c = s.accept()[0]
sys.stdin.readline()
try:
    while c.recv(1000000): pass
    print('{"kind": "end"}')
except ConnectionResetError:
    print('{"kind": "reset"}')
`;
    const { child: server, next } = start(python(script));
    const { port, counters } = relays.relayTo((await next((line) => line.port !== undefined)).port as number, engine);
    const client = await dial(port);
    client.write(Buffer.alloc(30 * MiB));
    await stalls(counters);
    client.resetAndDestroy();
    assert.is((await relays.event('ended')).reason, 'reset');
    server.stdin?.write('read now\n');
    assert.is((await next((line) => line.kind !== undefined)).kind, 'reset');
  });

  it('a reset after a clean end does not cost the other side a byte', async ({ relays, engine }) => {
    const accepted: net.Socket[] = [];
    const server = await serve((socket) => void accepted.push(socket), { pauseOnConnect: true });
    const { port, counters } = relays.relayTo(server.port, engine);
    const client = await dial(port);
    const hash = createHash('sha1');
    const send = () => {
      const chunk = randomBytes(256 * 1024);
      hash.update(chunk);
      client.write(chunk);
    };
    await until(() => accepted.length === 1, 'the server has the connection');
    // As much as goes on, each when the one before has, and some that waits in the kernel for the relay to read it.
    const goesOn = () => counters[Counter.bytesFromClient] === BigInt(client.bytesWritten);
    do send();
    while (
      await until(goesOn, 'it goes on', 500).then(
        () => true,
        () => false,
      )
    );
    send();
    const bytes = client.bytesWritten;
    client.end();
    client.destroySoon();
    // What the client's own kernel had still to send when it answers with RST would be lost with or without a relay. Here it
    // has nothing any more: its FIN is acknowledged.
    const ofClient = ['-tanH', 'sport', '=', `:${client.localPort}`];
    await until(() => `${execFileSync('ss', ofClient)}`.startsWith('FIN-WAIT-2'), 'the relay has it all');
    accepted[0]?.write('nobody listens any more');
    await sleep(100);
    assert.equal(await drain(accepted[0] as net.Socket), { bytes, hash: hash.digest('hex') });
    assert.is((await relays.event('ended')).reason, 'reset');
  });

  it('a slow reader makes the writer stall, and memory stays bounded', async ({ relays, engine }) => {
    let accepted: net.Socket | undefined;
    const server = await serve(
      (socket) => {
        accepted = socket;
      },
      { pauseOnConnect: true },
    );
    const { port, counters } = relays.relayTo(server.port, engine);
    const client = await dial(port);
    const size = 100 * MiB;
    const pouring = pour(client, size, 4);
    await stalls(counters);
    assert.ok(client.bytesWritten < 48 * MiB, `${client.bytesWritten} bytes were taken from the client`);
    const reading = drain(accepted as net.Socket);
    const sent = await pouring;
    client.end();
    assert.equal(await reading, { bytes: size, hash: sent });
    (accepted as net.Socket).end();
    await relays.event('ended');
  });

  it('messages one at a time to a reader that stops: each arrives once and is counted once', async ({
    relays,
    engine,
  }) => {
    let accepted: net.Socket | undefined;
    const server = await serve(
      (socket) => {
        accepted = socket;
      },
      { pauseOnConnect: true },
    );
    const { port, counters } = relays.relayTo(server.port, engine);
    const client = await dial(port);
    client.setNoDelay();
    const hash = createHash('sha1');
    let sent = 0;
    const counted = () => counters[Counter.bytesFromClient] === BigInt(sent);
    // Each goes on before the next is sent, until one does not, or not all of it.
    for (let stuck = false; !stuck; ) {
      const message = randomBytes(3001);
      hash.update(message);
      sent += message.length;
      assert.ok(sent < 48 * MiB, 'nobody stops the writer');
      client.write(message);
      const patience = performance.now() + 300;
      while (!counted() && !stuck) {
        await sleep(0);
        stuck = performance.now() > patience;
      }
    }
    const reading = drain(accepted as net.Socket);
    client.end();
    assert.equal(await reading, { bytes: sent, hash: hash.digest('hex') });
    (accepted as net.Socket).end();
    assert.equal(ended(await relays.event('ended')), ['end', BigInt(sent), 0n]);
    assert.ok(counted());
  });

  it('prefaces go first', async ({ relays, engine }) => {
    const [client, clientSide] = await connected();
    const [serverSide, server] = await connected();
    const counters = newCounters();
    const fromClient = readAll(server);
    const fromServer = readAll(client);
    client.write('third');
    server.write('dritt');
    const clientPreface = Buffer.concat([Buffer.alloc(3 * MiB, 1), Buffer.from('second')]);
    const id = relays.thread.relay({
      clientFd: takeOver(clientSide),
      serverFd: takeOver(serverSide),
      clientPreface,
      serverPreface: Buffer.from('zweit'),
      engine,
      counters,
    });
    client.end();
    server.end();
    assert.ok((await fromClient).equals(Buffer.concat([clientPreface, Buffer.from('third')])));
    assert.is(`${await fromServer}`, 'zweitdritt');
    const moved = BigInt(clientPreface.length + 5);
    assert.equal(ended(await relays.event('ended', id)), ['end', moved, 10n]);
    assert.is(counters[Counter.bytesFromClient], moved);
  });

  it('urgent data neither stalls nor truncates, and stays in its place', async ({ relays, engine }) => {
    const received: Promise<Buffer>[] = [];
    const server = await serve((socket) => {
      received.push(readAll(socket));
      socket.end();
    });
    const { port } = relays.relayTo(server.port, engine);
    const script = `
import socket, sys, time
def play(*steps):
    s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for step in steps:
        if isinstance(step, float): time.sleep(step)
        elif isinstance(step, str): s.sendall(step.encode())
        else: s.send(step, socket.MSG_OOB)
    s.shutdown(socket.SHUT_WR)
    while s.recv(100): pass
    s.close()
play('abc', 0.1, b'!', 0.1, 'def')
play('abc', b'!')
play(b'!', 'abc')
play('abc', b'!', b'?', 'def', b'+')
play('a' * 200000, b'!', 'b' * 200000)
`;
    assert.is((await once(start(python(script, port)).child, 'exit'))[0], 0);
    const texts = (await Promise.all(received)).map(String);
    assert.equal(texts.slice(0, 4), ['abc!def', 'abc!', '!abc', 'abc!?def+']);
    assert.ok(texts[4] === `${'a'.repeat(200000)}!${'b'.repeat(200000)}`);
  });

  it('bytes before and after an urgent byte arrive while the connection stays open', async ({ relays, engine }) => {
    let text = '';
    const server = await serve((socket) => void socket.on('data', (data) => (text += data)));
    const { port } = relays.relayTo(server.port, engine);
    const script = `
import socket, sys, time
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
s.sendall(b'abc'); s.send(b'!', socket.MSG_OOB); s.sendall(b'def')
time.sleep(60)
`;
    start(python(script, port));
    await until(() => text === 'abc!def', 'everything has arrived');
  });

  it('64 bytes go there and back in less than 5 ms', async ({ relays, engine }) => {
    const server = await echo();
    const relayed = await dial(relays.relayTo(server.port, engine).port);
    const { ours, without } = await roundTrips(200, Buffer.alloc(64), relayed, await dial(server.port));
    // What is held back waits for 40 ms (a delayed ACK) or 200; a busy machine delays some, and those without a relay too.
    const [half, most] = [5 + 4 * without.half, 20 + 4 * without.most];
    assert.ok(ours.half < half && ours.most < most, JSON.stringify({ ours, without }));
  });

  it('a server that speaks first is heard', async ({ relays, engine }) => {
    const server = await serve((socket) => void socket.write('220 ready'));
    const client = await dial(relays.relayTo(server.port, engine).port);
    assert.is(`${(await once(client, 'data'))[0]}`, '220 ready');
  });

  it('a message of exactly 16 segments is not held back', async ({ relays, engine }) => {
    const size = 16 * 65483; // segments of loopback
    let got = 0;
    const server = await serve((socket) => void socket.on('data', (data) => (got += data.length)));
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.setNoDelay();
    const times: number[] = [];
    for (let i = 1; i <= 10; i++) {
      const started = performance.now();
      client.write(Buffer.alloc(size));
      while (got < i * size) await sleep(1);
      times.push(performance.now() - started);
    }
    // Each of them would be, for 200 ms; a crowded machine delays some.
    assert.ok(Math.min(...times) < 150, `${times} ms`);
  });
}

test('messages and bursts in turn, both ways: each is carried in its way, and all arrive in order', async ({
  relays,
  engine,
}) => {
  const server = await echo();
  const { port, counters } = relays.relayTo(server.port, engine);
  const client = await dial(port);
  client.setNoDelay();
  const reading = drain(client);
  const hash = createHash('sha1');
  let sent = 0;
  let received = 0;
  client.on('data', (chunk) => (received += chunk.length));
  const send = async (size: number, seed: number) => {
    const chunk = randomFillSync(Buffer.alloc(size));
    chunk[0] = seed;
    hash.update(chunk);
    sent += size;
    client.write(chunk);
    while (received < sent) await once(client, 'data');
  };
  for (let round = 0; round < 6; round++) {
    await send(3 * MiB, round);
    for (let i = 0; i < 300; i++) await send(1000 + i, i % 256);
  }
  client.end();
  assert.equal(await reading, { bytes: sent, hash: hash.digest('hex') });
  const [spliced, copied] = [counters[Counter.spliced], counters[Counter.copied]] as [bigint, bigint];
  assert.is(spliced + copied, BigInt(2 * sent));
  assert.ok(spliced > BigInt(sent), `${spliced} spliced`);
  // Without a way back, only the very first bytes would be: of 4 MB of messages, three in four are.
  assert.ok(copied > 2_000_000n, `${copied} copied`);
});

test('300 connections that begin with bulk at once share what there is to receive into', async ({ relays, engine }) => {
  const server = await echo();
  const { port } = relays.relayTo(server.port, engine);
  const clients = await Promise.all(Array.from({ length: 300 }, () => dial(port)));
  await Promise.all(
    clients.map(async (client, seed) => {
      const reading = drain(client);
      const hash = await pourAll(client, 300_000, seed % 256);
      assert.equal(await reading, { bytes: 300_000, hash });
    }),
  );
});

run();
