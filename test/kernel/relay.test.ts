/** The native relay over loopback: bytes, ends, resets, limits, decisions, resources, exits. Needs a network namespace with `lo` up. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash, randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import type * as net from 'node:net';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { Counter, type NativeDecision, native } from '../../src/native.js';
import type { Engine } from '../../src/types.js';
import {
  dial,
  dialToEnd,
  drain,
  type EndedEvent,
  echo,
  endOf,
  newCounters,
  pour,
  pourAll,
  Relays,
  readAll,
  resources,
  serve,
  sink,
  until,
  within,
} from '../helpers/relays.js';

const MiB = 1024 * 1024;
const relay = suite('relay');
let relays: Relays;
let engine: Engine;
const testWith = (wanted: Engine, what: string, body: () => Promise<void>) => {
  const name = `${wanted}: ${what}`;
  if (process.argv[2] && !name.includes(process.argv[2])) return;
  const alone = async () => {
    engine = wanted;
    relays = new Relays({ engine });
    await body();
  };
  relay(name, within(30_000, alone));
};
/** What depends on who waits and reads is tested with both. */
const test = (what: string, body: () => Promise<void>) => {
  for (const wanted of ['epoll', 'uring'] satisfies Engine[]) testWith(wanted, what, body);
};
relay.after.each(() => relays.stop());

const ended = (event: EndedEvent) => [event.reason, event.bytesFromClient, event.bytesFromServer];
const python = (script: string, ...args: unknown[]) =>
  spawn('python3', ['-c', script, ...args.map(String)], { stdio: ['ignore', 'inherit', 'inherit'] });

/** A descriptor as it comes from Node: our own duplicate of a socket that JavaScript then gives up. */
function takeOver(socket: net.Socket): number {
  const fd = native.duplicate((socket as unknown as { _handle: { fd: number } })._handle.fd);
  socket.destroy();
  return fd;
}

/** A connection between two sockets of this process. */
async function connected(): Promise<[net.Socket, net.Socket]> {
  let accepted: (socket: net.Socket) => void;
  const other = new Promise<net.Socket>((resolve) => {
    accepted = resolve;
  });
  const server = await serve((socket) => accepted(socket), { pauseOnConnect: true });
  const socket = await dial(server.port);
  const pair: [net.Socket, net.Socket] = [socket, await other];
  server.server.close();
  return pair;
}

/** A listening port that answers nothing any more: its backlog is full. */
async function fullBacklog(): Promise<{ port: number; fd: number; filling: net.Socket; close(): void }> {
  const fd = native.openListener({ address: '127.0.0.1', port: 0, backlog: 0, transparent: false });
  const { port } = native.socketAddress(fd);
  const filling = await dial(port);
  return {
    port,
    fd,
    filling,
    close() {
      filling.destroy();
      native.closeDescriptor(fd);
    },
  };
}

/** Waits until no more bytes of the client go anywhere. */
async function stalls(counters: BigUint64Array): Promise<void> {
  for (let before = -1n; before !== counters[Counter.bytesFromClient]; await sleep(150))
    before = counters[Counter.bytesFromClient] as bigint;
}

type Line = { port?: number; engine?: string; kind?: string; failure?: { code: string }; counters?: string[] };

/** Starts a command, and gives the lines of JSON that it prints. */
function start(command: string[]): { child: ChildProcess; next(wanted: (line: Line) => boolean): Promise<Line> } {
  const [file, ...args] = command as [string, ...string[]];
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines: Line[] = [];
  createInterface(child.stdout).on('line', (line) => lines.push(JSON.parse(line)));
  return {
    child,
    async next(wanted) {
      await until(() => lines.some(wanted), 'the child says so', 15_000);
      return lines.find(wanted) as Line;
    },
  };
}

for (const wanted of ['epoll', 'uring', 'uring-splice', 'copy'] satisfies Engine[]) {
  const it = (what: string, body: () => Promise<void>) => testWith(wanted, what, body);

  it('64 MiB of random chunks both ways at once arrive byte for byte', async () => {
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
    server.close();
  });

  it('many small chunks with pauses, 4 connections at once, arrive byte for byte', async () => {
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
    server.close();
  });

  it('the client ends first: the server answers after that', async () => {
    const server = await serve(async (socket) => {
      const request = await readAll(socket);
      await sleep(20);
      socket.end(`${request} answered`);
    });
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.end('question');
    assert.is(`${await readAll(client)}`, 'question answered');
    assert.equal(ended(await relays.event('ended')), ['end', 8n, 17n]);
    server.close();
  });

  it('the server ends first: the client goes on', async () => {
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
    server.close();
  });

  it('a connection without a byte ends cleanly', async () => {
    const server = await serve((socket) => socket.resume().on('end', () => socket.end()));
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.end();
    assert.is((await readAll(client)).length, 0);
    assert.equal(ended(await relays.event('ended')), ['end', 0n, 0n]);
    server.close();
  });

  it('a reset by the client reaches the server', async () => {
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
    server.close();
  });

  it('a reset by the server reaches the client', async () => {
    const server = await serve((socket) => socket.once('data', () => socket.resetAndDestroy()));
    const client = await dial(relays.relayTo(server.port, engine).port);
    const seen = endOf(client);
    client.write('x');
    assert.is(await seen, 'ECONNRESET');
    assert.is((await relays.event('ended')).reason, 'reset');
    server.close();
  });

  it('a reset reaches the other side although that one is slow', async () => {
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
    const { child: server, next } = start(['python3', '-c', script]);
    const { port, counters } = relays.relayTo((await next((line) => line.port !== undefined)).port as number, engine);
    const client = await dial(port);
    client.write(Buffer.alloc(30 * MiB));
    await stalls(counters);
    client.resetAndDestroy();
    assert.is((await relays.event('ended', undefined, 1000)).reason, 'reset');
    server.stdin?.write('read now\n');
    assert.is((await next((line) => line.kind !== undefined)).kind, 'reset');
  });

  it('a reset after a clean end does not cost the other side a byte', async () => {
    let got: ReturnType<typeof drain> | undefined;
    let clientGone = () => {};
    const gone = new Promise<void>((resolve) => {
      clientGone = resolve;
    });
    const server = await serve(
      async (socket) => {
        await gone;
        await sleep(100);
        socket.write('nobody listens any more'); // is answered with RST
        await sleep(200);
        got = drain(socket);
      },
      { pauseOnConnect: true },
    );
    const client = await dial(relays.relayTo(server.port, engine).port);
    const sent = await pour(client, 2 * MiB, 3);
    client.end();
    client.destroySoon();
    await once(client, 'close');
    clientGone();
    assert.is((await relays.event('ended')).reason, 'reset');
    await until(() => got !== undefined, 'the server reads');
    assert.equal(await got, { bytes: 2 * MiB, hash: sent });
    server.close();
  });

  it('a slow reader makes the writer stall, and memory stays bounded', async () => {
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
    server.close();
  });

  it('prefaces go first', async () => {
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

  it('urgent data neither stalls nor truncates, and stays in its place', async () => {
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
    assert.is((await once(python(script, port), 'exit'))[0], 0);
    const texts = (await Promise.all(received)).map(String);
    assert.equal(texts.slice(0, 4), ['abc!def', 'abc!', '!abc', 'abc!?def+']);
    assert.ok(texts[4] === `${'a'.repeat(200000)}!${'b'.repeat(200000)}`);
    server.close();
  });

  it('bytes before and after an urgent byte arrive while the connection stays open', async () => {
    let text = '';
    const server = await serve((socket) => void socket.on('data', (data) => (text += data)));
    const { port } = relays.relayTo(server.port, engine);
    const script = `
import socket, sys, time
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
s.sendall(b'abc'); s.send(b'!', socket.MSG_OOB); s.sendall(b'def')
time.sleep(60)
`;
    const child = python(script, port);
    await until(() => text === 'abc!def', 'everything has arrived');
    child.kill();
    server.close();
  });

  it('64 bytes go there and back in less than 5 ms', async () => {
    const server = await echo();
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.setNoDelay();
    const times: number[] = [];
    for (let i = 0; i < 200; i++) {
      const sent = performance.now();
      client.write(Buffer.alloc(64));
      await once(client, 'data');
      times.push(performance.now() - sent);
    }
    times.sort((a, b) => a - b);
    assert.ok((times[180] as number) < 5, `90% within ${times[180]} ms`);
    client.destroy();
    server.close();
  });

  it('a server that speaks first is heard', async () => {
    const server = await serve((socket) => void socket.write('220 ready'));
    const started = performance.now();
    const client = await dial(relays.relayTo(server.port, engine).port);
    assert.is(`${(await once(client, 'data'))[0]}`, '220 ready');
    assert.ok(performance.now() - started < 100);
    client.destroy();
    server.close();
  });

  it('a message of exactly 16 segments is not held back', async () => {
    const size = 16 * 65483; // segments of loopback
    let got = 0;
    const server = await serve((socket) => void socket.on('data', (data) => (got += data.length)));
    const client = await dial(relays.relayTo(server.port, engine).port);
    client.setNoDelay();
    for (let i = 1; i <= 10; i++) {
      const started = performance.now();
      client.write(Buffer.alloc(size));
      while (got < i * size) await sleep(1);
      assert.ok(performance.now() - started < 150, `${performance.now() - started} ms`);
    }
    client.destroy();
    server.close();
  });
}

// ---- what only an engine that changes its ways can get wrong -----------------------------------------------------------

test('messages and bursts in turn, both ways: each is carried in its way, and all arrive in order', async () => {
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
  server.close();
});

test('300 connections that begin with bulk at once share what there is to receive into', async () => {
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
  server.close();
});

test('what the client sends while the upstream connects is kept, within bounds', async () => {
  const full = await fullBacklog();
  const { port } = relays.relayTo(full.port, engine);
  const client = await dial(port);
  const hash = pourAll(client, 20 * MiB, 11);
  await sleep(300);
  assert.ok(client.bytesWritten < 16 * MiB, `${client.bytesWritten} bytes were taken`);
  const accepted: net.Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => void accepted.push(socket));
  server.listen({ fd: full.fd });
  await until(() => accepted.length === 2, 'the kernel has tried again');
  assert.equal(await drain(accepted[1] as net.Socket), { bytes: 20 * MiB, hash: await hash });
  accepted[1]?.end();
  assert.is((await relays.event('ended')).reason, 'end');
  for (const socket of [full.filling, ...accepted]) socket.destroy();
  server.close();
});

test('what is kept for connects that wait takes nothing from others', async () => {
  const full = await fullBacklog();
  const stuck = relays.relayTo(full.port, engine);
  const waiting = await Promise.all(Array.from({ length: 40 }, () => dial(stuck.port)));
  await until(() => relays.events.length === 40, 'all are decided about');
  for (const client of waiting) client.write(Buffer.alloc(200_000));
  await sleep(100);
  const server = await echo();
  const { port } = relays.relayTo(server.port, engine);
  const client = await dial(port);
  const reading = drain(client);
  const hash = await pourAll(client, 100_000, 12);
  assert.equal(await reading, { bytes: 100_000, hash });
  for (const one of waiting) one.destroy();
  full.close();
  server.close();
});

/** CPU milliseconds of the relay thread in a while. */
async function cpuOf(what: () => Promise<void>): Promise<number> {
  const spent = () =>
    readdirSync('/proc/self/task')
      .filter((id) => readFileSync(`/proc/self/task/${id}/comm`, 'utf8') === 'tproxy-relay\n')
      .reduce(
        (sum, id) => sum + Number(readFileSync(`/proc/self/task/${id}/schedstat`, 'utf8').split(' ')[0]) / 1e6,
        0,
      );
  const before = spent();
  await what();
  return spent() - before;
}

test('half-closed relays cost no CPU, whoever ended and whatever is stuck', async () => {
  const sockets: net.Socket[] = [];
  const server = await serve((socket) => void sockets.push(socket), { pauseOnConnect: true });
  const { port } = relays.relayTo(server.port, engine);
  const connectOne = async () => {
    const client = await dial(port);
    await until(() => sockets.length > 0, 'the server has the connection');
    return { client, upstream: sockets.pop() as net.Socket };
  };
  const cases = [await connectOne(), await connectOne(), await connectOne(), await connectOne()] as const;
  cases[0].client.end('x');
  cases[1].upstream.end('x');
  // Its last bytes cannot go on, and the other side is silent.
  cases[2].client.end(Buffer.alloc(12 * MiB));
  // The side that has ended does not read.
  cases[3].client.pause().end('x');
  cases[3].upstream.write(Buffer.alloc(12 * MiB));
  await sleep(300);
  const spent = await cpuOf(() => sleep(500));
  assert.ok(spent < 25, `${spent} ms in half a second`);
  for (const { client, upstream } of cases) for (const socket of [client, upstream]) socket.destroy();
  server.close();
});

testWith('uring', 'looking again before sleeping costs nothing where it does not pay', async () => {
  const server = await echo();
  const exchange = async (waitsBy: Engine) => {
    const one = waitsBy === engine ? relays : new Relays({ engine: waitsBy });
    const client = await dial(one.relayTo(server.port, waitsBy).port);
    client.setNoDelay();
    const spent = await cpuOf(async () => {
      for (let i = 0; i < 400; i++) {
        client.write('ping');
        await once(client, 'data');
        await sleep(1);
      }
    });
    client.destroy();
    if (one !== relays) one.stop();
    return spent;
  };
  const epoll = await exchange('epoll');
  const uring = await exchange('uring');
  // 400 exchanges are 800 waits: 60 us each would be 48 ms.
  assert.ok(uring < epoll + 24, `${uring} ms, epoll ${epoll} ms`);
  server.close();
});

// ---- connecting -------------------------------------------------------------------------------------------------------

test('a refused upstream connection: the client is reset', async () => {
  const { port, counters } = relays.relayTo(1, engine);
  assert.is(await dialToEnd(port), 'ECONNRESET');
  const event = await relays.event('ended');
  assert.is(event.reason, 'error');
  assert.equal(event.failure, {
    kind: 'socket',
    errno: 111,
    code: 'ECONNREFUSED',
    syscall: 'connect',
    address: '127.0.0.1',
    port: 1,
  });
  assert.is(counters[Counter.connectErrors], 1n);
});

test('an upstream that does not answer: ETIMEDOUT, and the client is reset', async () => {
  const full = await fullBacklog();
  const { port } = relays.relayTo(full.port, engine, { timeoutMs: 200 });
  const started = performance.now();
  assert.is(await dialToEnd(port), 'ECONNRESET');
  const took = performance.now() - started;
  assert.ok(took > 190 && took < 1000, `${took} ms`);
  const { reason, failure } = await relays.event('ended');
  assert.equal([reason, failure?.code], ['error', 'ETIMEDOUT']);
  full.close();
});

test('a client that resets while the upstream connects ends it', async () => {
  const full = await fullBacklog();
  const { port } = relays.relayTo(full.port, engine);
  const client = await dial(port);
  await relays.event('flow');
  await sleep(20);
  client.resetAndDestroy();
  assert.is((await relays.event('ended', undefined, 1000)).reason, 'reset');
  full.close();
});

test('connect hands a connected socket out', async () => {
  const server = await serve((socket) => void socket.end(`${socket.remoteAddress} ${socket.remotePort}`));
  const { Socket } = await import('node:net');
  const to = { address: '127.0.0.1', port: server.port };
  const hear = async (fd: number) => `${await readAll(new Socket({ fd }))}`;

  const plain = await relays.event('connected', relays.thread.connect({ ...to, localAddress: '127.0.0.9' }));
  assert.match(await hear(plain.fd), /^127\.0\.0\.9 \d+$/);
  assert.is(plain.localPortKept, undefined);

  const exact = await relays.event(
    'connected',
    relays.thread.connect({ ...to, localAddress: '127.0.0.9', localPort: 1234 }),
  );
  assert.is(exact.localPortKept, true);
  // The same 4-tuple lives: a second one cannot have it.
  const again = { ...to, localAddress: '127.0.0.9', localPort: 1234 };
  const refused = await relays.event('failed', relays.thread.connect(again));
  assert.is(refused.failure.code, 'EADDRNOTAVAIL');
  const fallback = await relays.event('connected', relays.thread.connect({ ...again, localPortOptional: true }));
  assert.is(fallback.localPortKept, false);
  assert.match(await hear(fallback.fd), /^127\.0\.0\.9 (?!1234)\d+$/);
  assert.is(await hear(exact.fd), '127.0.0.9 1234');
  server.close();
});

test('connect tells why it failed', async () => {
  const failed = async (id: number) => {
    const { code, syscall, address, port } = (await relays.event('failed', id)).failure as Record<string, unknown>;
    return [code, syscall, address, port];
  };
  const full = await fullBacklog();
  const connect = (options: object) => relays.thread.connect({ address: '127.0.0.1', port: full.port, ...options });
  assert.equal(await failed(connect({ port: 1 })), ['ECONNREFUSED', 'connect', '127.0.0.1', 1]);
  assert.equal(await failed(connect({ timeoutMs: 50 })), ['ETIMEDOUT', 'connect', '127.0.0.1', full.port]);
  assert.equal(await failed(connect({ localAddress: '::1' })), ['EAFNOSUPPORT', 'bind', '::1', 0]);
  const slow = connect({});
  relays.thread.destroy(slow);
  assert.equal(await failed(slow), ['ECANCELED', 'connect', '127.0.0.1', full.port]);
  full.close();
});

test('a client of the listener itself is not relayed in a circle', async () => {
  const { port } = relays.listen((flow) => ({
    kind: 'relay',
    engine: engine,
    address: flow.originalDestination.address,
    port: flow.originalDestination.port,
  }));
  assert.is(await dialToEnd(port), 'ECONNRESET');
  assert.is((await relays.event('ended')).failure?.code, 'ELOOP');
  assert.is(relays.events.filter((event) => event.kind === 'flow').length, 1);

  const fd = native.openListener({ address: '127.0.0.1', port: 0, backlog: 10, transparent: false });
  const direct = native.socketAddress(fd).port;
  const counters = newCounters();
  relays.thread.accept({ fd, decide: false, engine: engine, upstream: { from: 'client' }, counters });
  assert.is(await dialToEnd(direct), 'ECONNRESET');
  assert.equal([counters[Counter.connectionsTotal], counters[Counter.connectErrors]], [1n, 1n]);
});

// ---- time -------------------------------------------------------------------------------------------------------------

test('idle: no byte either way for that long, then reset to both', async () => {
  let seen: Promise<string> | undefined;
  const server = await serve((socket) => {
    seen = endOf(socket);
  });
  const client = await dial(relays.relayTo(server.port, engine, { idleTimeoutMs: 300 }).port);
  const started = performance.now();
  for (let i = 0; i < 4; i++) {
    await sleep(150);
    client.write('x');
  }
  assert.is(await endOf(client), 'ECONNRESET');
  const took = performance.now() - started;
  assert.ok(took > 850 && took < 1500, `${took} ms`);
  assert.equal(ended(await relays.event('ended')), ['idle', 4n, 0n]);
  assert.is(await seen, 'ECONNRESET');
  server.close();
});

test('half-close has a limit of its own', async () => {
  const server = await serve((socket) => void socket.resume());
  const client = await dial(
    relays.relayTo(server.port, engine, { idleTimeoutMs: 60_000, halfCloseTimeoutMs: 200 }).port,
  );
  await sleep(300);
  const started = performance.now();
  client.end('request');
  assert.is(await endOf(client), 'ECONNRESET');
  const took = performance.now() - started;
  assert.ok(took > 190 && took < 1000, `${took} ms`);
  assert.equal(ended(await relays.event('ended')), ['idle', 7n, 0n]);
  server.close();
});

test('keepalive runs on both sockets of a relay', async () => {
  const server = await echo();
  const { port } = relays.relayTo(server.port, engine, { keepAliveMs: 60_000 });
  const client = await dial(port);
  await relays.event('opened');
  await sleep(20);
  const timers = (filter: string) => `${execFileSync('ss', ['-tnoH', ...filter.split(' ')])}`;
  assert.match(timers(`sport = :${port}`), /timer:\(keepalive,(1min|59sec|60sec)/);
  assert.match(timers(`dport = :${server.port}`), /timer:\(keepalive,(1min|59sec|60sec)/);
  client.destroy();
  server.close();
});

// ---- decisions --------------------------------------------------------------------------------------------------------

test('a flow tells both ends of the connection', async () => {
  const { id, port } = relays.listen(() => undefined);
  const client = await dial(port);
  const { server, source, originalDestination } = await relays.event('flow');
  assert.is(server, id);
  assert.equal(source, { family: 'ipv4', address: '127.0.0.1', port: client.localPort });
  assert.equal(originalDestination, { family: 'ipv4', address: '127.0.0.1', port });
  client.destroy();
});

test('an IPv4 client of a dual stack listener is shown as IPv4', async () => {
  const { port } = relays.listen(() => ({ kind: 'reset' }), { address: '::' });
  await dialToEnd(port);
  const { source, originalDestination } = await relays.event('flow');
  assert.equal(
    [source.address, source.family, originalDestination],
    ['127.0.0.1', 'ipv4', { family: 'ipv4', address: '127.0.0.1', port }],
  );
});

test('decisions: socket, reset, close', async () => {
  const decisions: NativeDecision[] = [{ kind: 'socket' }, { kind: 'reset' }];
  const { port, counters } = relays.listen(() => decisions.shift());

  const first = await dial(port);
  first.write('to JavaScript');
  const { fd } = await relays.event('socket');
  const { Socket } = await import('node:net');
  const socket = new Socket({ fd });
  assert.is(`${(await once(socket, 'data'))[0]}`, 'to JavaScript');
  socket.end('and back');
  assert.is(`${await readAll(first)}`, 'and back');
  first.destroy();

  assert.is(await dialToEnd(port), 'ECONNRESET');

  // What the client had said already must not turn its FIN into a RST.
  const third = await dial(port);
  third.write('unheard');
  await sleep(50);
  relays.thread.decide((await relays.event('flow')).id + 2, { kind: 'close' });
  assert.is(await endOf(third), 'end');
  third.destroy();
  await until(() => counters[Counter.connectionsOpen] === 0n, 'none is open');
  assert.is(counters[Counter.connectionsTotal], 3n);
});

test('a client that resets before it is decided about', async () => {
  const { port, counters } = relays.listen(() => undefined);
  const client = await dial(port);
  const { id } = await relays.event('flow');
  client.resetAndDestroy();
  assert.is((await relays.event('ended', id)).reason, 'reset');
  relays.thread.decide(id, { kind: 'socket' }); // too late: ignored
  relays.thread.destroy(id);
  await sleep(20);
  assert.is(relays.events.length, 2);
  assert.is(counters[Counter.connectionsOpen], 0n);
});

test('peek waits for its bytes, consumes none, and costs no CPU', async () => {
  const server = await echo();
  const { port } = relays.listen(() => undefined);
  const client = await dial(port);
  const { id } = await relays.event('flow');
  const peek = async (bytes: number, timeoutMs: number, expected: string) => {
    const before = relays.events.length;
    relays.thread.peek(id, bytes, timeoutMs);
    await until(() => relays.events.length > before, 'peeked');
    const event = relays.events.at(-1);
    assert.is(event?.kind === 'peeked' && `${event.data}`, expected);
  };

  await peek(5, 0, '');
  const waiting = peek(5, 5000, 'hello');
  client.write('he');
  const cpu = process.cpuUsage();
  await sleep(300);
  const spent = process.cpuUsage(cpu);
  assert.ok(spent.user + spent.system < 150_000, `${spent.user + spent.system} us of CPU while waiting`);
  client.write('llo, world');
  await waiting;

  const started = performance.now();
  await peek(100, 200, 'hello, world');
  assert.ok(performance.now() - started > 190);
  const untilEnd = peek(100, 5000, 'hello, world');
  await sleep(20);
  client.end();
  await untilEnd;

  relays.thread.decide(id, { kind: 'relay', engine: engine, address: '127.0.0.1', port: server.port });
  assert.is(`${await readAll(client)}`, 'hello, world');
  await relays.event('opened', id);
  assert.equal(ended(await relays.event('ended', id)), ['end', 12n, 12n]);
  server.close();
});

test('destroy in the middle of a transfer resets both sides', async () => {
  let seen: Promise<string> | undefined;
  const server = await serve((socket) => {
    seen = endOf(socket);
  });
  const client = await dial(relays.relayTo(server.port, engine).port);
  const { id } = await relays.event('flow');
  pour(client, 500 * MiB, 5).catch(() => {});
  await until(() => (seen !== undefined && client.bytesWritten > 10 * MiB) as boolean, 'bytes flow');
  relays.thread.destroy(id);
  await Promise.all([endOf(client), seen]); // libuv takes a reset behind unread bytes for an end
  assert.is((await relays.event('ended', id)).reason, 'destroyed');
  client.destroy();
  server.close();
});

test('stopAccepting: no new connections, the open ones go on, then closed', async () => {
  const server = await echo();
  const { id, port } = relays.relayTo(server.port, engine);
  const client = await dial(port);
  await relays.event('opened');
  relays.thread.stopAccepting(id);
  await sleep(50);
  assert.is(await dial(port).catch((error: NodeJS.ErrnoException) => error.code), 'ECONNREFUSED');
  client.end('still served');
  assert.is(`${await readAll(client)}`, 'still served');
  await relays.event('closed', id);
  assert.equal(
    relays.events.slice(-2).map((event) => event.kind),
    ['ended', 'closed'],
  );

  const idle = relays.listen(() => undefined);
  relays.thread.stopAccepting(idle.id);
  await relays.event('closed', idle.id);
  server.close();
});

// ---- resources --------------------------------------------------------------------------------------------------------

test('1,000 relays at once', async () => {
  const server = await echo();
  const { port, counters } = relays.relayTo(server.port, engine);
  const clients = await Promise.all(Array.from({ length: 1000 }, () => dial(port)));
  await Promise.all(
    clients.map(async (client, i) => {
      client.write(`number ${i}`);
      assert.is(`${(await once(client, 'data'))[0]}`, `number ${i}`);
    }),
  );
  assert.is(counters[Counter.connectionsOpen], 1000n);
  assert.ok(resources().pipes < 40, `${resources().pipes} pipe ends are open while all are idle`);
  for (const client of clients) client.end();
  await Promise.all(clients.map(readAll));
  await until(() => counters[Counter.connectionsOpen] === 0n, 'all have ended');
  server.close();
});

test('10,000 relays one after the other leave nothing behind', async () => {
  const server = await echo();
  const { port, counters } = relays.relayTo(server.port, engine);
  const one = async () => {
    const client = await dial(port);
    client.end('x');
    assert.is((await readAll(client)).length, 1);
  };
  for (let i = 0; i < 2000; i++) await one();
  relays.events.length = 0;
  const before = resources();
  const memory = process.memoryUsage().rss;
  for (let i = 0; i < 8000; i++) {
    await one();
    if (i % 500 === 0) relays.events.length = 0;
  }
  await until(() => counters[Counter.connectionsOpen] === 0n, 'all have ended');
  await sleep(50);
  const after = resources();
  assert.ok(after.descriptors <= before.descriptors + 4, `${before.descriptors} -> ${after.descriptors} descriptors`);
  assert.ok(after.pipes <= before.pipes + 4, `${before.pipes} -> ${after.pipes} pipe ends`);
  assert.is(after.threads, before.threads);
  const grown = (process.memoryUsage().rss - memory) / MiB;
  assert.ok(grown < 30, `${grown} MiB more`);
  assert.is(counters[Counter.connectionsTotal], 10_000n);
  server.close();
});

test('bytes that a reset left in a pipe never reach anybody else', async () => {
  let slow = true;
  const server = await serve((socket) => void (slow || socket.pipe(socket)), { pauseOnConnect: true });
  const { port, counters } = relays.relayTo(server.port, engine);
  for (let i = 0; i < 3; i++) {
    const client = await dial(port);
    client.write(Buffer.alloc(20 * MiB, 'a'));
    await stalls(counters);
    client.resetAndDestroy();
  }
  await until(() => counters[Counter.connectionsOpen] === 0n, 'all have ended');
  slow = false;
  for (let seed = 0; seed < 20; seed++) {
    const client = await dial(port);
    const reading = drain(client);
    const hash = await pourAll(client, 100_000, seed);
    assert.equal(await reading, { bytes: 100_000, hash });
  }
  server.close();
});

test('stop in the middle of traffic closes everything', async () => {
  const server = await sink();
  const before = resources();
  for (let i = 0; i < 10; i++) {
    const stopped = new Relays({ engine });
    const { port } = stopped.relayTo(server.port, engine);
    const clients = await Promise.all([dial(port), dial(port), dial(port)]);
    const ends = clients.map((client) => {
      pour(client, 100 * MiB, 6).catch(() => {});
      return endOf(client);
    });
    await sleep(30);
    stopped.stop();
    for (const end of ends) assert.match(await end, /^(ECONNRESET|EPIPE)$/);
    assert.throws(() => stopped.thread.connect({ address: '127.0.0.1', port: 1 }), /stopped/);
  }
  await until(() => resources().descriptors <= before.descriptors, 'no descriptor is left');
  assert.is(resources().threads, before.threads);
  server.close();
});

// ---- the process around it ----------------------------------------------------------------------------------------------

const relayChild = (...args: unknown[]) => [
  process.execPath,
  '--import',
  'tsx',
  new URL('../helpers/relay-child.ts', import.meta.url).pathname,
  ...args.map(String),
];

test('process.exit in the middle of traffic exits at once with its code', async () => {
  const server = await sink();
  for (let i = 0; i < 3; i++) {
    const { child: relay, next } = start(relayChild(server.port, engine, 300));
    const exited = once(relay, 'exit');
    const client = await dial((await next((line) => line.port !== undefined)).port as number);
    pour(client, 2000 * MiB, 7).catch(() => {});
    client.on('error', () => {});
    assert.equal(await exited, [7, null]);
    client.destroy();
  }
  server.close();
});

test('a worker thread that is terminated in the middle of traffic takes its relay with it', async () => {
  const server = await sink();
  const before = resources();
  for (let i = 0; i < 10; i++) {
    // tsx does not reach into workers by itself.
    const script = fileURLToPath(new URL('../helpers/relay-child.ts', import.meta.url));
    const code = `require('tsx/cjs'); require('${script}')`;
    const worker = new Worker(code, { eval: true, workerData: [`${server.port}`, engine] });
    const [{ port }] = (await once(worker, 'message')) as [{ port: number }];
    const client = await dial(port);
    const end = endOf(client);
    pour(client, 2000 * MiB, 8).catch(() => {});
    await sleep(20 * i);
    await worker.terminate();
    assert.match(await end, /^(ECONNRESET|EPIPE)$/);
    client.destroy();
  }
  await until(() => resources().descriptors <= before.descriptors + 2, 'no descriptor is left');
  await until(() => resources().threads <= before.threads, 'no thread is left');
  server.close();
});

test('a blocked event loop does not slow a relay', async () => {
  const script = new URL('../helpers/ping-pong-child.ts', import.meta.url).pathname;
  const peers = spawn(process.execPath, ['--import', 'tsx', script], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface(peers.stdout)[Symbol.asyncIterator]();
  const { port } = relays.relayTo(Number((await lines.next()).value), engine);
  peers.stdin.write(`${port}\n`);
  assert.is((await lines.next()).value, 'started');
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000);
  const { rounds, slowest } = JSON.parse((await lines.next()).value) as { rounds: number; slowest: number };
  assert.ok(rounds > 1000 && slowest < 700, `${rounds} rounds, the slowest ${slowest} ms`);
});

for (const code of ['EPERM', 'EACCES', 'ENOSYS', 'EINVAL'])
  test(`where splice gives ${code}, bytes are copied and none is lost`, async () => {
    const server = await echo();
    const launcher = new URL('../helpers/refuse.py', import.meta.url).pathname;
    const { child: relay, next } = start([
      'python3',
      launcher,
      `splice=${code}`,
      '--',
      ...relayChild(server.port, engine),
    ]);
    const client = await dial((await next((line) => line.port !== undefined)).port as number);
    const reading = drain(client);
    const sent = await pour(client, 16 * MiB, 9);
    client.end();
    assert.equal(await reading, { bytes: 16 * MiB, hash: sent });
    const { counters } = await next((line) => line.kind === 'ended');
    assert.equal([counters?.[Counter.spliced], counters?.[Counter.copied]], ['0', `${32 * MiB}`]);
    relay.kill();
    server.close();
  });

for (const code of ['EPERM', 'EACCES', 'ENOSYS'])
  testWith('uring', `where io_uring_setup gives ${code}, the engine is epoll, and nothing else changes`, async () => {
    const server = await echo();
    const launcher = new URL('../helpers/refuse.py', import.meta.url).pathname;
    const { child: relay, next } = start([
      'python3',
      launcher,
      `io_uring_setup=${code}`,
      '--',
      ...relayChild(server.port, engine),
    ]);
    const told = await next((line) => line.port !== undefined);
    assert.is(told.engine, 'epoll');
    const client = await dial(told.port as number);
    const reading = drain(client);
    const sent = await pour(client, 4 * MiB, 9);
    client.end();
    assert.equal(await reading, { bytes: 4 * MiB, hash: sent });
    relay.kill();
    server.close();
  });

test('without capabilities the pipes of a user are used sparingly, and what has none is copied', async () => {
  const paused: net.Socket[] = [];
  const server = await serve((socket) => void paused.push(socket), { pauseOnConnect: true });
  const bound = ['setpriv', '--bounding-set', '-all', '--inh-caps', '-all'];
  const { child: relay, next } = start([...bound, ...relayChild(server.port, engine)]);
  const port = (await next((line) => line.port !== undefined)).port as number;
  const pid = relay.pid as number;
  const before = resources(pid).pipes;
  const clients = await Promise.all(Array.from({ length: 24 }, () => dial(port)));
  const sent = clients.map((client, seed) => pourAll(client, 10 * MiB, seed));
  let stalled = -1;
  for (let now = 0; now !== stalled; await sleep(300)) {
    stalled = now;
    now = clients.reduce((sum, client) => sum + client.bytesWritten, 0);
  }
  const pipes = (resources(pid).pipes - before) / 2;
  assert.is(pipes, 16, `${pipes} pipes`); // a quarter of fs.pipe-user-pages-soft
  const received = await Promise.all(paused.map(async (socket) => (await drain(socket)).hash));
  assert.equal(received.sort(), (await Promise.all(sent)).sort());
  relay.kill();
  for (const client of clients) client.destroy();
  server.close();
});

test('a thread keeps the process alive only when it is asked to', async () => {
  const helper = new URL('../helpers/relays.ts', import.meta.url).pathname;
  const run = (call: string) =>
    spawn(process.execPath, [
      '--import',
      'tsx',
      '--input-type=module',
      '-e',
      `
      import { Relays } from '${helper}';
      const relays = new Relays({ engine: '${engine}' });
      relays.listen(() => undefined);
      relays.thread.${call}();
    `,
    ]);
  assert.equal(await once(run('unref'), 'exit'), [0, null]);
  const kept = run('ref');
  await sleep(1500);
  assert.is(kept.exitCode, null);
  kept.kill();
  assert.equal(await once(kept, 'exit'), [null, 'SIGTERM']);
});

test('no descriptors for pipes: what has none is copied', async () => {
  const server = await echo();
  const { child: relay, next } = start([
    'sh',
    '-c',
    'ulimit -n 40; exec "$@"',
    'sh',
    ...relayChild(server.port, engine),
  ]);
  const port = (await next((line) => line.port !== undefined)).port as number;
  const descriptors = () => resources(relay.pid as number).descriptors;
  const clients: net.Socket[] = [];
  // Until two more would not fit, so that a pipe does not either.
  while (descriptors() < 38) {
    const before = descriptors();
    clients.push(await dial(port));
    await until(() => descriptors() > before, 'it is accepted');
  }
  await Promise.all(
    clients.map(async (client, seed) => {
      const reading = drain(client);
      const hash = await pourAll(client, MiB, seed);
      assert.equal(await reading, { bytes: MiB, hash });
    }),
  );
  relay.kill();
  server.close();
});

test('signals are for the threads of Node: none reaches the relay', async () => {
  const server = await echo();
  await dial(relays.relayTo(server.port, engine).port).then((client) => client.destroy());
  const threads = readdirSync('/proc/self/task').map((id) => readFileSync(`/proc/self/task/${id}/status`, 'utf8'));
  const blocked = threads
    .filter((status) => /^Name:\ttproxy-relay$/m.test(status))
    .map((status) => /SigBlk:\t(.*)/.exec(status)?.[1]);
  assert.is(blocked.length, 1);
  // SIGHUP, SIGINT, SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGCHLD, SIGPROF
  for (const signal of [1, 2, 10, 12, 13, 14, 15, 17, 27])
    assert.ok(BigInt(`0x${blocked[0]}`) & (1n << BigInt(signal - 1)), `signal ${signal} in ${blocked[0]}`);
  server.close();
});

test('bulk beside small messages: those are not held up', async () => {
  const [bulk, small] = [await sink(), await echo()];
  const flood = await dial(relays.relayTo(bulk.port, engine).port);
  pour(flood, 4000 * MiB, 1).catch(() => {});
  const client = await dial(relays.relayTo(small.port, engine).port);
  client.setNoDelay();
  const times: number[] = [];
  for (let i = 0; i < 100; i++) {
    const sent = performance.now();
    client.write('ping');
    await once(client, 'data');
    times.push(performance.now() - sent);
  }
  times.sort((a, b) => a - b);
  // This process pours and receives as well, so it is its own event loop that takes the time.
  assert.ok((times[50] as number) < 50, `half of them within ${times[50]} ms`);
  flood.destroy();
  client.destroy();
  bulk.close();
  small.close();
});

test('out of descriptors: accept fails once, waits, and goes on', async () => {
  const server = await echo();
  const { child: relay, next } = start([
    'sh',
    '-c',
    'ulimit -n 64; exec "$@"',
    'sh',
    ...relayChild(server.port, engine),
  ]);
  const port = (await next((line) => line.port !== undefined)).port as number;
  const clients = await Promise.all(Array.from({ length: 60 }, () => dial(port)));
  const failed = await next((line) => line.kind === 'acceptFailed');
  assert.is(failed.failure?.code, 'EMFILE');
  // Each is served in the end, as others make room.
  let served = 0;
  await Promise.all(
    clients.map(async (client, i) => {
      client.end(`number ${i}`);
      assert.is(`${await readAll(client)}`, `number ${i}`);
      served++;
    }),
  );
  assert.is(served, 60);
  relay.kill();
  server.close();
});

relay.run();
