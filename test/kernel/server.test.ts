/** createTransparentServer, connectTransparent and relay() as a user of the package meets them. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  connectTransparent,
  createTransparentServer,
  type Flow,
  type Relay,
  type RelayDecision,
  relay,
  type TransparentServer,
  type TransparentServerOptions,
  type TransparentSocket,
} from '../../src/index.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { ask, dial, greet, greeting } from '../helpers/talk.js';
import { within } from '../helpers/wait.js';

const test = suite('server');
let lab: Lab;
let netns: string;
const client = addresses.client.ipv4;
const target = addresses.server.ipv4;

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  await greet(lab, 'server', 'server', 80);
});
test.after(() => lab.dispose());

async function start(
  options: TransparentServerOptions,
  listener?: (socket: TransparentSocket) => void,
): Promise<TransparentServer> {
  const server = createTransparentServer({ intercept: { tcp: [80] }, netns, ...options }, listener);
  await once(server.listen(50080), 'listening');
  return server;
}
const stop = (server: TransparentServer) => new Promise((resolve) => server.close(resolve));

// ---- sockets ------------------------------------------------------------------------------------------------------------

for (const family of ['ipv4', 'ipv6'] as const)
  test(`${family}: a proxy in ten lines: accept, connect from the client's address, relay`, async () => {
    const relays: Relay[] = [];
    const server = await start({ pauseOnConnect: true }, async (socket) => {
      const { address, port } = socket.originalDestination;
      const upstream = await connectTransparent({ address, port, localAddress: addresses.client[family], netns });
      relays.push(relay(socket, upstream));
    });
    const call = await dial(lab, 'client', addresses.server[family], 80);
    assert.is(`${call.who} ${call.sawAddress}`, `server ${addresses.client[family]}`);
    await call.echo('hello');
    const [only] = relays;
    assert.is(only?.stats().bytesFromClient, 6n);
    call.socket.end();
    const result = await only?.closed;
    assert.is(result?.reason, 'end');
    assert.is(result?.bytesFromClient, 6n);
    await stop(server);
  });

test('relay() sends on what JavaScript had read already, and what it had written', async () => {
  const server = await start({}, async (socket) => {
    socket.write('from the proxy\n');
    const [first] = await once(socket, 'data'); // read by JavaScript
    assert.is(String(first), 'line one\n');
    socket.pause();
    await sleep(50); // "line two" is read into the socket's buffer meanwhile
    const upstream = await connectTransparent({ address: target, port: 80, netns });
    upstream.write('written before the relay\n');
    relay(socket, upstream);
  });
  const socket = remembering(await connectTransparent({ address: target, port: 80, netns: lab.netns('client') }));
  socket.write('line one\n');
  await sleep(20);
  socket.write('line two\n');
  await socket.until('line two\n');
  assert.match(socket.text(), /^from the proxy\nserver 10\.77\.2\.1 \d+\nwritten before the relay\nline two\n$/);
  socket.destroy();
  await stop(server);
});

test('http.Server works on the sockets', async () => {
  const http = createHttpServer((req, res) => {
    const { originalDestination } = req.socket as TransparentSocket;
    res.end(
      `${req.url} ${originalDestination.address}:${originalDestination.port} from ${req.socket.remoteAddress?.replace('::ffff:', '')}`,
    );
  });
  const server = await start({}, (socket) => http.emit('connection', socket));
  const page = await lab.run('client', 'curl', '-sS', '--max-time', '30', `http://${target}/a`, `http://${target}/b`);
  assert.is(page, `/a ${target}:80 from ${client}/b ${target}:80 from ${client}`);
  await stop(server);
});

test('urgent data stays in its place, in accepted and in connected sockets', async () => {
  const send =
    "s.sendall(b'abc'); s.send(b'!', socket.MSG_OOB); s.sendall(b'def\\n'); s.shutdown(socket.SHUT_WR); s.recv(9)";
  const texts: string[] = [];
  const read = async (socket: Socket) => {
    let text = '';
    for await (const chunk of socket) text += chunk;
    texts.push(text);
  };
  const server = await start({}, read);
  const script = `import socket; s = socket.create_connection(('${target}', 80)); ${send}`;
  await lab.run('client', 'python3', '-c', script);

  const listen = `import socket; l = socket.create_server(('', 81)); print('ready', flush=True); s = l.accept()[0]; ${send}`;
  const peer = lab.spawn('server', 'python3', '-c', listen);
  await peer.until(/ready/);
  await read(await connectTransparent({ address: target, port: 81, localAddress: client, netns }));
  assert.equal(texts, ['abc!def\n', 'abc!def\n']);
  await stop(server);
});

test('a TLS or unconnected socket is refused by relay()', async () => {
  const { TLSSocket } = await import('node:tls');
  const plain = connect({ host: '127.0.0.1', port: 1 }).on('error', () => {});
  assert.throws(() => relay(plain, plain), /client must be connected/);
  assert.throws(() => relay(new TLSSocket(plain), plain), /plain TCP socket/);
  assert.throws(() => relay({} as Socket, plain), /net\.Socket/);
  plain.destroy();
});

test('close(): open connections go on, and the rules with them; then everything goes', async () => {
  const before = lab.snapshot('router');
  const server = await start({ pauseOnConnect: true }, async (socket) => {
    relay(socket, await connectTransparent({ address: target, port: 80, localAddress: client, netns }));
  });
  const call = await dial(lab, 'client', target, 80);
  let closed = false;
  server.close(() => {
    closed = true;
  });
  await sleep(100);
  await call.echo('still here');
  assert.is(closed, false);
  assert.is(await ask(lab, 'client', target, 80), 'server', 'new connections go their own way');
  await call.hangUp();
  if (!closed) await once(server, 'close');
  assert.is(lab.snapshot('router'), before);
});

/**
 * A connection that both sides have ended, and of whose bytes the router still has most to send: the client reads only when
 * it is told to. They are more than that client's window, and less than a send buffer.
 */
async function slowEnd(sender: 'router' | 'server', address: string, port: number) {
  const serve = `l = socket.create_server(('', ${port})); print('ready', flush=True); l.accept()[0].sendall(bytes(30_000))`;
  const program = lab.spawn(sender, 'python3', '-c', `import socket; ${serve}`);
  await program.until(/ready/);
  const read = `import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048); s.settimeout(10)
s.connect(('${address}', ${port})); s.shutdown(socket.SHUT_WR)
signal.sigwait([signal.SIGUSR1])
print('got', len(b''.join(iter(lambda: s.recv(65536), b''))), flush=True)`;
  const client = lab.spawn('client', 'python3', '-c', read);
  const ending = ['state', 'last-ack', 'state', 'fin-wait-1', 'state', 'closing'];
  const rows = () => lab.exec('router', 'ss', '-HtnO', ...ending, `sport = :${port}`);
  const queued = () => Number(rows().split(/\s+/)[2] ?? 0);
  for (let waited = 0; queued() < 15_000; waited += 50) {
    assert.ok(waited < 10_000, `most of it is still to be sent: ${rows()}`);
    await sleep(50);
  }
  const readAll = async () => {
    client.process.kill('SIGUSR1');
    assert.is((await client.until(/got (\d+)/, 15_000))[1], '30000');
  };
  return { queued, readAll };
}

test('close(): the last bytes of a connection that has ended reach a client that takes its time', async () => {
  const server = await start({ intercept: { tcp: [82] }, relay: true });
  const { readAll } = await slowEnd('server', target, 82);
  const closed = stop(server);
  await sleep(300);
  await readAll();
  await closed;
});

test('close() does not wait for what this host sends as itself', async () => {
  const server = await start({ intercept: { tcp: [82] }, relay: true });
  const { queued, readAll } = await slowEnd('router', addresses.router.ipv4, 83);
  await within(4000, async () => void (await stop(server)))();
  assert.ok(queued() > 15_000, 'closed while it is still to be sent');
  await readAll();
});

test('close() where the namespace cannot be entered any more: the rules go all the same', async () => {
  const before = lab.snapshot('router');
  const path = '/run/netns/alias';
  writeFileSync(path, '');
  execFileSync('mount', ['--bind', netns, path]);
  const server = await start({ intercept: { tcp: [82] }, relay: true, netns: path });
  execFileSync('umount', [path]);
  rmSync(path);
  const errors: Error[] = [];
  server.on('error', (error) => errors.push(error));
  await stop(server);
  assert.equal(errors, []);
  assert.is(lab.snapshot('router'), before);
});

test('listen() twice, close() twice, close() while starting, an address in use', async () => {
  const server = await start({});
  assert.throws(() => server.listen(50081), /listening already/);
  assert.equal(server.address(), { address: '::', family: 'IPv6', port: 50080 });
  const second = createTransparentServer({ netns });
  const [error] = await once(second.listen(50080), 'error').catch((caught) => [caught]);
  assert.is(error.code, 'EADDRINUSE');
  assert.match(error.message, /ss -antp/);
  const closing = createTransparentServer({ netns }).listen(50080);
  const refused = once(closing, 'error');
  await within(5_000, async () => void (await stop(closing)))();
  assert.is(((await refused)[0] as NodeJS.ErrnoException).code, 'EADDRINUSE');
  await stop(server);
  const again = await new Promise<Error | undefined>((resolve) => server.close(resolve));
  assert.is((again as NodeJS.ErrnoException).code, 'ERR_SERVER_NOT_RUNNING');
  await once(server.listen(50080), 'listening'); // it can be used again
  await stop(server);
  const before = lab.snapshot('router');
  const third = createTransparentServer({ intercept: { tcp: [80] }, netns }).listen(50080);
  await stop(third);
  assert.is(lab.snapshot('router'), before);
});

test('options that cannot be meant are refused when the server is made', () => {
  const bad: [object, RegExp][] = [
    [{ intercpt: {} }, /no option 'intercpt'/],
    [{ intercept: { tcp: [99999] } }, /65535/],
    [{ relay: 'yes' }, /relay/],
    [{ engine: 'warp' }, /engine must be 'auto'/],
  ];
  for (const [options, message] of bad)
    assert.throws(() => createTransparentServer(options as TransparentServerOptions), message);
  assert.throws(() => createTransparentServer().listen(70000), /65535/);
  assert.throws(() => createTransparentServer().listen(80, 'localhost'), /IP address/);
});

// ---- decisions ----------------------------------------------------------------------------------------------------------

async function decided(decide: (flow: Flow) => RelayDecision | Promise<RelayDecision>) {
  const flows: Flow[] = [];
  const relays: Relay[] = [];
  const server = await start({
    relay: (flow) => {
      flows.push(flow);
      return decide(flow);
    },
  });
  server.on('relay', (each) => relays.push(each));
  return { server, flows, relays };
}

test('relay: (flow) => ... sees both ends, and the relay carries the bytes', async () => {
  const { server, flows, relays } = await decided(() => ({ kind: 'relay' }));
  const call = await dial(lab, 'client', target, 80);
  assert.is(`${call.who} ${call.sawAddress}`, `server ${client}`);
  assert.equal(flows[0]?.originalDestination, { family: 'ipv4', address: target, port: 80 });
  assert.equal(flows[0]?.source, { family: 'ipv4', address: client, port: call.socket.localPort });
  await call.echo('hello');
  assert.is(relays[0]?.stats().bytesFromClient, 6n);
  assert.is(server.stats().bytesFromClient, 6n);
  call.socket.end();
  assert.is((await relays[0]?.closed)?.reason, 'end');
  await stop(server);
});

test('relay decisions: another destination, own source, the same source port', async () => {
  await greet(lab, 'server', 'other', 8080);
  for (const [decision, who, from, samePort] of [
    [{ kind: 'relay', to: { address: target, port: 8080 } }, 'other', client, false],
    [{ kind: 'relay', from: 'proxy' }, 'server', addresses.routerUpstream.ipv4, false],
    [{ kind: 'relay', sourcePort: 'preserve' }, 'server', client, true],
    [{ kind: 'relay', sourcePort: 'prefer' }, 'server', client, true],
    [{ kind: 'relay', from: { address: '10.77.1.99', port: 0 } }, 'server', '10.77.1.99', false],
  ] as const) {
    const { server } = await decided(() => decision);
    const call = await dial(lab, 'client', target, 80);
    assert.is(`${call.who} ${call.sawAddress}`, `${who} ${from}`, JSON.stringify(decision));
    assert.is(call.sawPort === call.socket.localPort, samePort, JSON.stringify(decision));
    await call.hangUp();
    await stop(server);
  }
});

test('peek sees the first bytes and takes none; a silent client runs into the time', async () => {
  const peeked: string[] = [];
  const { server } = await decided(async (flow) => {
    peeked.push(String(await flow.peek(5, 300)));
    return { kind: 'relay' };
  });
  const socket = remembering(await connectTransparent({ address: target, port: 80, netns: lab.netns('client') }));
  socket.write('hello, server\n');
  await socket.until('hello, server\n');
  assert.is(peeked[0], 'hello');
  socket.destroy();
  const silent = await dial(lab, 'client', target, 80); // the server speaks first
  assert.is(silent.who, 'server');
  assert.is(peeked[1], '');
  assert.ok(silent.milliseconds >= 290, `${silent.milliseconds} ms`);
  await silent.hangUp();
  await stop(server);
});

test('decisions: socket, reset, close, and one that throws', async () => {
  const socketServer = await start({ relay: () => ({ kind: 'socket' }) }, (socket) => greeting('handed', socket));
  assert.is(await ask(lab, 'client', target, 80), 'handed');
  await stop(socketServer);
  const { server: resetting } = await decided(() => ({ kind: 'reset' }));
  assert.is(await ask(lab, 'client', target, 80), 'ECONNRESET');
  await stop(resetting);
  const { server: closing } = await decided(() => ({ kind: 'close' }));
  assert.is(await ask(lab, 'client', target, 80), 'E_END');
  await stop(closing);
  const { server: throwing } = await decided(() => {
    throw new Error('cannot decide');
  });
  const error = once(throwing, 'error').catch((caught) => [caught]);
  assert.is(await ask(lab, 'client', target, 80), 'ECONNRESET');
  assert.match((await error)[0].message, 'cannot decide');
  await stop(throwing);
});

test('a relay whose upstream refuses ends with the error', async () => {
  const { server, relays } = await decided(() => ({ kind: 'relay', to: { address: target, port: 4 } }));
  assert.is(await ask(lab, 'client', target, 80), 'ECONNRESET');
  const result = await relays[0]?.closed;
  assert.is(result?.reason, 'error');
  assert.is((result?.error as NodeJS.ErrnoException | undefined)?.code, 'ECONNREFUSED');
  await stop(server);
});

// ---- connectTransparent -------------------------------------------------------------------------------------------------

test('connectTransparent: errors say what failed and what to do', async () => {
  const options = { address: target, port: 80, netns };
  const failure = async (more: object) =>
    connectTransparent({ ...options, ...more }).then(
      () => assert.unreachable(),
      (error) => error,
    );
  assert.is((await failure({ port: 5 })).code, 'ECONNREFUSED');
  const unreachable = await failure({ address: '203.0.113.1' });
  assert.is(unreachable.code, 'ENETUNREACH');
  assert.match(unreachable.message, 'ip route get');
  const late = await failure({ localAddress: '192.0.2.1', timeoutMs: 200 });
  assert.is(late.code, 'ETIMEDOUT');
  assert.match(late.message, 'intercept: {}');
  assert.is((await failure({ netns: '/run/netns/none' })).code, 'ENOENT');
  const aborted = await failure({ localAddress: '192.0.2.1', signal: AbortSignal.timeout(100) });
  assert.is(aborted.name, 'TimeoutError');
  assert.throws(() => connectTransparent({ ...options, localAddress: '::1' }), /same family/);
  assert.throws(() => connectTransparent({ ...options, address: 'localhost' }), /IP address/);
  assert.throws(() => connectTransparent({ ...options, sourcePort: 'preserve' }), /localPort/);
  assert.throws(() => connectTransparent({ ...options, prot: 1 } as never), /no option 'prot'/);
});

/** A socket with a memory of what it received. */
function remembering(socket: Socket) {
  let received = '';
  socket.on('data', (chunk) => {
    received += chunk;
  });
  socket.on('error', () => {});
  return Object.assign(socket, {
    text: () => received,
    async until(end: string) {
      const late = AbortSignal.timeout(30_000);
      while (!received.endsWith(end)) await once(socket, 'data', { signal: late });
    },
  });
}

test.run();
