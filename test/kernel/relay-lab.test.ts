// runs alone
/** The relay under load, through the real rules: client - router - server, spoofed source, bytes compared by hash. */
import { createHash, type Hash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent, createTransparentServer, type TransparentServer } from '../../src/index.js';
import { native } from '../../src/native.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { collectGarbage } from '../helpers/memory.js';
import { bytes, digest } from '../helpers/peers/bytes.mjs';
import { until } from '../helpers/wait.js';

const test = suite('relay through the rules');
const GiB = 2 ** 30;
const target = addresses.server.ipv4;
const peer = (name: string) => new URL(`../helpers/peers/${name}.mjs`, import.meta.url);
let lab: Lab;
let router: TransparentServer;

test.before(async () => {
  lab = await createLab();
  router = createTransparentServer({ intercept: { tcp: [9000, 9001, 9002] }, relay: true, netns: lab.netns('router') });
  await once(router.listen(50080), 'listening');
  await lab.node('server', peer('stream'), '9000');
  await lab.node('server', peer('echo'), '9001');
});
test.after(async () => {
  await new Promise((resolve) => router.close(resolve));
  await lab.dispose();
});

const dial = (port: number) =>
  connectTransparent({ address: target, port, netns: lab.netns('client'), allowHalfOpen: true });

/** A server in the lab whose connections this test holds in its own hands. */
async function listenInServer(port: number): Promise<{ accept(): Promise<Socket>; close(): Promise<void> }> {
  const fd = native.openListener({
    address: '::',
    port,
    backlog: 2048,
    transparent: false,
    netns: lab.netns('server'),
  });
  const waiting: Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    waiting.push(socket);
    server.emit('accepted');
  });
  await once(server.listen({ fd }), 'listening');
  return {
    async accept() {
      while (waiting.length === 0) await once(server, 'accepted');
      return waiting.shift() as Socket;
    },
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

const exitCode = async (program: { process: NodeJS.EventEmitter }) => (await once(program.process, 'close'))[0];

test('256 MiB each way at once, one reader slow: not a byte lost, doubled or out of order', async () => {
  const size = 256 * 2 ** 20;
  const before = router.stats();
  const transfers = [
    lab.spawn('client', process.execPath, peer('transfer').pathname, 'put', target, '9000', String(size)),
    // 1 ms of sleep for each chunk of up to 64 KiB: the relay has to wait for the reader again and again.
    lab.spawn('client', process.execPath, peer('transfer').pathname, 'get', target, '9000', String(size), '1'),
  ];
  const codes = await Promise.all(transfers.map(exitCode));
  assert.equal(codes, [0, 0], transfers.map((each) => each.output()).join('\n'));
  for (const each of transfers) assert.match(each.output(), `${size} ${digest(size)}`);
  const after = router.stats();
  assert.ok(after.bytesFromClient - before.bytesFromClient >= BigInt(size));
  assert.ok(after.bytesFromServer - before.bytesFromServer >= BigInt(size));
});

test('full duplex on one connection: 256 MiB echoed', async () => {
  const length = 256 * 2 ** 20;
  const socket = await dial(9001);
  const hash: Hash = createHash('sha256');
  let received = 0;
  socket.on('data', (chunk) => {
    received += chunk.length;
    hash.update(chunk);
  });
  for (const chunk of bytes(length)) if (!socket.write(chunk)) await once(socket, 'drain');
  socket.end();
  await once(socket, 'end');
  assert.is(received, length);
  assert.is(hash.digest('hex'), digest(length));
});

test('half-close in both orders: the other direction goes on', async () => {
  const server = await listenInServer(9002);
  for (const first of ['client', 'server'] as const) {
    const client = await dial(9002);
    const upstream = await server.accept();
    const [closer, other] = first === 'client' ? [client, upstream] : [upstream, client];
    let received = '';
    closer.on('data', (chunk) => {
      received += chunk;
    });
    other.resume();
    closer.end('last words');
    await once(other, 'end');
    await sleep(50);
    other.write('still ');
    await sleep(50);
    other.end('talking');
    await once(closer, 'end');
    assert.is(received, 'still talking', `${first} closed first`);
  }
  await server.close();
});

test('a reset is passed on as a reset, in both directions', async () => {
  const server = await listenInServer(9002);
  for (const first of ['client', 'server'] as const) {
    const client = await dial(9002);
    const upstream = await server.accept();
    const [resetter, other] = first === 'client' ? [client, upstream] : [upstream, client];
    other.resume();
    const error = once(other, 'error').catch((caught) => [caught]);
    resetter.resetAndDestroy();
    assert.is((await error)[0].code, 'ECONNRESET', `${first} resets`);
  }
  await server.close();
});

test('1,000 connections at once', async () => {
  const sockets = await Promise.all(Array.from({ length: 1000 }, () => dial(9001)));
  await Promise.all(
    sockets.map(async (socket, index) => {
      const line = `connection ${index}\n`;
      let received = '';
      socket.on('data', (chunk) => {
        received += chunk;
      });
      socket.end(line);
      await once(socket, 'end');
      assert.is(received, line);
    }),
  );
  await until(() => router.stats().connections.open === 0, 'all have ended');
});

test('10,000 connections one after the other: no descriptor, pipe, thread or memory more than before', async () => {
  const resident = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
  const counts = () => ({
    descriptors: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
  });
  const rounds = async (count: number) => {
    for (let index = 0; index < count; index += 10)
      await Promise.all(
        Array.from({ length: 10 }, async () => {
          const socket = await dial(9001);
          socket.resume();
          socket.end('x');
          await once(socket, 'close');
        }),
      );
    await until(() => router.stats().connections.open === 0, 'all have ended');
    collectGarbage();
  };
  await rounds(4000); // until heaps and allocators have found their size
  await sleep(1500); // the thread that connects goes a second after its last connect
  const before = counts();
  // What leaks does so in every round; heaps and allocators, of the JavaScript side of this test too, grow in some of them.
  const grown: number[] = [];
  for (let round = 0; round < 4; round++) {
    const held = resident();
    await rounds(2500);
    grown.push(resident() - held);
  }
  await until(
    () => counts().descriptors <= before.descriptors && counts().threads <= before.threads,
    () => `${JSON.stringify(counts())}, before ${JSON.stringify(before)}`,
  );
  assert.ok(Math.min(...grown) < 1000, `${grown} KB more`);
});

test('JavaScript blocked for 3 s: the relay in progress does not slow', async () => {
  const length = GiB;
  const seconds = async (blocked: boolean) => {
    const program = lab.spawn(
      'client',
      process.execPath,
      peer('transfer').pathname,
      'get',
      target,
      '9000',
      String(length),
    );
    const start = router.stats().bytesFromServer;
    await until(() => router.stats().bytesFromServer > start, 'bytes flow');
    // Blocks this thread without a turn of the event loop, and without burning the CPU that the others need.
    if (blocked) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3000);
    // Read from shared memory: no event had to be delivered for it.
    const moved = router.stats().bytesFromServer - start;
    assert.is(await exitCode(program), 0, program.output());
    return { moved, time: Number(program.output().trim().split(' ')[2]) };
  };
  await seconds(false);
  const found: string[] = [];
  // Three times, for the machine may have other things to do in one of them.
  for (let attempt = 0; attempt < 3; attempt++) {
    const free = await seconds(false);
    const blocked = await seconds(true);
    // In three seconds, at least a third of what it moves in three when nothing is blocked.
    const expected = Math.min(length, (length / free.time) * 3);
    if (Number(blocked.moved) > expected / 3 && blocked.time < free.time * 1.5) return;
    found.push(`${blocked.moved} bytes while blocked, ${expected} expected, ${free.time} s free, ${blocked.time} s`);
  }
  assert.unreachable(found.join('\n'));
});

test.run();
