/** What the native relay does before bytes flow, and when it stops: connecting, decisions, peeks, limits of time. Needs a network namespace with `lo` up. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import type * as net from 'node:net';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { Counter, type NativeDecision, native } from '../../src/native.js';
import { relaySuite } from '../helpers/relay-suite.js';
import {
  dial,
  dialToEnd,
  drain,
  echo,
  ended,
  endOf,
  fullBacklog,
  newCounters,
  opened,
  pour,
  pourAll,
  readAll,
  serve,
  until,
} from '../helpers/relays.js';

const MiB = 1024 * 1024;
const { test, run } = relaySuite('relay, its flows');

// ---- connecting -------------------------------------------------------------------------------------------------------

test('a refused upstream connection: the client is reset', async ({ relays, engine }) => {
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

test('an upstream that does not answer: ETIMEDOUT, and the client is reset', async ({ relays, engine }) => {
  const full = await fullBacklog();
  const { port } = relays.relayTo(full.port, engine, { timeoutMs: 200 });
  const started = performance.now();
  assert.is(await dialToEnd(port), 'ECONNRESET');
  const took = performance.now() - started;
  assert.ok(took > 190, `${took} ms`);
  const { reason, failure } = await relays.event('ended');
  assert.equal([reason, failure?.code], ['error', 'ETIMEDOUT']);
});

test('a client that resets while the upstream connects ends it', async ({ relays, engine }) => {
  const full = await fullBacklog();
  const { port } = relays.relayTo(full.port, engine);
  const client = await dial(port);
  await relays.event('flow');
  await sleep(20);
  client.resetAndDestroy();
  assert.is((await relays.event('ended')).reason, 'reset');
});

test('what the client sends while the upstream connects is kept, within bounds', async ({ relays, engine }) => {
  const full = await fullBacklog();
  const { port } = relays.relayTo(full.port, engine);
  const client = await dial(port);
  const hash = pourAll(client, 20 * MiB, 11);
  await sleep(300);
  assert.ok(client.bytesWritten < 16 * MiB, `${client.bytesWritten} bytes were taken`);
  const accepted: net.Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => void accepted.push(socket));
  opened.add(() => server.close());
  server.listen({ fd: full.take() });
  await until(() => accepted.length === 2, 'the kernel has tried again');
  assert.equal(await drain(accepted[1] as net.Socket), { bytes: 20 * MiB, hash: await hash });
  accepted[1]?.end();
  assert.is((await relays.event('ended')).reason, 'end');
  for (const socket of [full.filling, ...accepted]) socket.destroy();
});

test('what is kept for connects that wait takes nothing from others', async ({ relays, engine }) => {
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
});

test('connect hands a connected socket out', async ({ relays }) => {
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
});

test('connect tells why it failed', async ({ relays }) => {
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
});

test('a client of the listener itself is not relayed in a circle', async ({ relays, engine }) => {
  const { port } = relays.listen((flow) => ({
    kind: 'relay',
    engine,
    address: flow.originalDestination.address,
    port: flow.originalDestination.port,
  }));
  assert.is(await dialToEnd(port), 'ECONNRESET');
  assert.is((await relays.event('ended')).failure?.code, 'ELOOP');
  assert.is(relays.events.filter((event) => event.kind === 'flow').length, 1);

  const fd = native.openListener({ address: '127.0.0.1', port: 0, backlog: 10, transparent: false });
  const direct = native.socketAddress(fd).port;
  const counters = newCounters();
  relays.thread.accept({ fd, decide: false, engine, upstream: { from: 'client' }, counters });
  assert.is(await dialToEnd(direct), 'ECONNRESET');
  assert.equal([counters[Counter.connectionsTotal], counters[Counter.connectErrors]], [1n, 1n]);
});

// ---- time -------------------------------------------------------------------------------------------------------------

test('idle: no byte either way for that long, then reset to both', async ({ relays, engine }) => {
  let seen: Promise<string> | undefined;
  const server = await serve((socket) => {
    seen = endOf(socket);
  });
  const client = await dial(relays.relayTo(server.port, engine, { idleTimeoutMs: 1000 }).port);
  const started = performance.now();
  for (let i = 0; i < 4; i++) {
    await sleep(300);
    client.write('x');
  }
  assert.is(await endOf(client), 'ECONNRESET');
  const took = performance.now() - started;
  assert.ok(took > 2150, `${took} ms`);
  assert.equal(ended(await relays.event('ended')), ['idle', 4n, 0n]);
  assert.is(await seen, 'ECONNRESET');
});

test('half-close has a limit of its own', async ({ relays, engine }) => {
  const server = await serve((socket) => void socket.resume());
  const client = await dial(
    relays.relayTo(server.port, engine, { idleTimeoutMs: 60_000, halfCloseTimeoutMs: 200 }).port,
  );
  await sleep(300);
  const started = performance.now();
  client.end('request');
  assert.is(await endOf(client), 'ECONNRESET');
  const took = performance.now() - started;
  assert.ok(took > 190 && took < 30_000, `${took} ms`);
  assert.equal(ended(await relays.event('ended')), ['idle', 7n, 0n]);
});

test('keepalive runs on both sockets of a relay', async ({ relays, engine }) => {
  const server = await echo();
  const { port } = relays.relayTo(server.port, engine, { keepAliveMs: 60_000 });
  await dial(port);
  await relays.event('opened');
  const timers = (filter: string) => `${execFileSync('ss', ['-tnoH', ...filter.split(' ')])}`;
  for (const filter of [`sport = :${port}`, `dport = :${server.port}`])
    await until(() => /timer:\(keepalive,(1min|[3-6]\dsec)/.test(timers(filter)), filter);
});

// ---- decisions --------------------------------------------------------------------------------------------------------

test('a flow tells both ends of the connection', async ({ relays }) => {
  const { id, port } = relays.listen(() => undefined);
  const client = await dial(port);
  const { server, source, originalDestination } = await relays.event('flow');
  assert.is(server, id);
  assert.equal(source, { family: 'ipv4', address: '127.0.0.1', port: client.localPort });
  assert.equal(originalDestination, { family: 'ipv4', address: '127.0.0.1', port });
});

test('an IPv4 client of a dual stack listener is shown as IPv4', async ({ relays }) => {
  const { port } = relays.listen(() => ({ kind: 'reset' }), { address: '::' });
  await dialToEnd(port);
  const { source, originalDestination } = await relays.event('flow');
  assert.equal(
    [source.address, source.family, originalDestination],
    ['127.0.0.1', 'ipv4', { family: 'ipv4', address: '127.0.0.1', port }],
  );
});

test('decisions: socket, reset, close', async ({ relays }) => {
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
  const flows = () => relays.events.filter((event) => event.kind === 'flow');
  await until(() => flows().length === 3, 'it is to be decided about');
  relays.thread.decide(flows()[2]?.id as number, { kind: 'close' });
  assert.is(await endOf(third), 'end');
  third.destroy();
  await until(() => counters[Counter.connectionsOpen] === 0n, 'none is open');
  assert.is(counters[Counter.connectionsTotal], 3n);
});

test('a client that resets before it is decided about', async ({ relays }) => {
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

test('peek waits for its bytes, consumes none, and costs no CPU', async ({ relays, engine }) => {
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

  relays.thread.decide(id, { kind: 'relay', engine, address: '127.0.0.1', port: server.port });
  assert.is(`${await readAll(client)}`, 'hello, world');
  await relays.event('opened', id);
  assert.equal(ended(await relays.event('ended', id)), ['end', 12n, 12n]);
});

test('destroy in the middle of a transfer resets both sides', async ({ relays, engine }) => {
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
});

test('stopAccepting: no new connections, the open ones go on, then closed', async ({ relays, engine }) => {
  const server = await echo();
  const { id, port } = relays.relayTo(server.port, engine);
  const client = await dial(port);
  await relays.event('opened');
  relays.thread.stopAccepting(id);
  await until(() => `${execFileSync('ss', ['-tlnH', 'sport', '=', `:${port}`])}` === '', 'nobody listens');
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
});

run();
