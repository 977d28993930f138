/** examples/http-proxy between curl, Debian's nginx and python3-websockets, and against what is no HTTP. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener } from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent } from '../../src/index.js';
import { native } from '../../src/native.js';
import { startExample } from '../helpers/examples.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { families, listening } from '../helpers/web.js';

const test = suite('http-proxy');
let lab: Lab;
let proxy: Program;
let before: string;
const file = randomBytes(1_000_003);
/** Of the test's own server, and of the one for WebSockets; nginx has the server's own addresses. */
const ours = '10.77.8.8';
const webSockets = '10.77.8.9';
const otherClients = { ipv4: '10.77.9.9', ipv6: 'fd77:9::9' };
const { client, server } = addresses;

test.before(async () => {
  lab = await createLab({ moreAddresses: { client: Object.values(otherClients), server: [ours, webSockets] } });
  writeFileSync('/run/file', file);
  writeFileSync('/run/inside', 'come in\n');
  writeFileSync(
    '/run/nginx.conf',
    `user root; daemon off; master_process off; pid /run/nginx.pid; error_log stderr;
    events {}
    http {
      access_log off;
      client_body_temp_path /run/b; proxy_temp_path /run/p; fastcgi_temp_path /run/f; uwsgi_temp_path /run/u; scgi_temp_path /run/s;
      server {
        listen ${server.ipv4}:80; listen [${server.ipv6}]:80;
        location / { root /run; }
        location = /inside { allow ${client.ipv4}; allow ${client.ipv6}; deny all; alias /run/inside; }
        location = /who { return 200 "$remote_addr, $connection_requests, $http_via, $http_cookie, $host\\n"; }
      }
    }`,
  );
  lab.spawn('server', 'nginx', '-c', '/run/nginx.conf');
  await listening(lab, 80, 'server');
  before = lab.snapshot('router');
  const headers = [
    '--request-header',
    'Via: linux-tproxy',
    '--request-header',
    'Cookie:',
    '--response-header',
    'Server: none',
  ];
  proxy = await startExample(lab, 'http-proxy', ...headers);
});
test.after(() => lab.dispose());

const curl = (...args: string[]) => lab.run('client', 'curl', '-sS', '--max-time', '30', ...args);
const urlOf = (address: string, path: string) => `http://${address.includes(':') ? `[${address}]` : address}${path}`;

/** A web server of the test's own. */
async function serve(listener: RequestListener): Promise<AsyncDisposable & { connections: number }> {
  const fd = native.openListener({
    address: ours,
    port: 80,
    backlog: 8,
    transparent: false,
    netns: lab.netns('server'),
  });
  const web = createServer(listener);
  await once(web.listen({ fd }), 'listening');
  const serving = {
    connections: 0,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => web.close(resolve));
      web.closeAllConnections();
      await closed;
    },
  };
  web.on('connection', () => serving.connections++);
  return serving;
}

/** What comes back for these bytes, until the end. */
async function talk(bytes: string, address = ours): Promise<string> {
  const to = { address, port: 80, netns: lab.netns('client'), mark: 0, timeoutMs: 30_000 };
  const socket: Socket = await connectTransparent(to);
  socket.setTimeout(30_000, () => socket.destroy(new Error(`no end of the answer to ${bytes}`)));
  socket.write(bytes, 'latin1');
  let text = '';
  for await (const chunk of socket) text += chunk;
  return text;
}

for (const family of families)
  test(`${family}: the page arrives, headers are changed both ways, the server sees the client, on one connection`, async () => {
    const url = urlOf(server[family], '/who');
    const told = ['-H', 'Cookie: secret', '-w', '%{num_connects} %{header_json}'];
    const host = family === 'ipv6' ? `[${server.ipv6}]` : server.ipv4;
    const pages = await curl(...told, url, ...told, url);
    assert.match(pages, `${client[family]}, 1, linux-tproxy, , ${host}\n1 {`);
    assert.match(pages, `${client[family]}, 2, linux-tproxy, , ${host}\n0 {`);
    assert.equal(pages.match(/"server":\["[^"]*"\]/g), ['"server":["none"]', '"server":["none"]']);
    await curl('-o', '/run/got', urlOf(server[family], '/file'));
    assert.ok(readFileSync('/run/got').equals(file));
    await proxy.until(new RegExp(`^${client[family]} > ${server[family]}: GET /file 200$`, 'm'));
  });

test("a server's access list knows its clients through the proxy", async () => {
  for (const family of families) {
    const inside = urlOf(server[family], '/inside');
    assert.is(await curl(inside), 'come in\n');
    assert.match(await curl('--interface', otherClients[family], inside), '403 Forbidden');
  }
});

test('a name in Host is passed on to where the client connected; an address must be that', async () => {
  assert.match(await curl('-H', 'Host: www.example.org', urlOf(server.ipv4, '/who')), 'www.example.org\n');
  assert.match(await curl('-H', `Host: ${ours}`, urlOf(server.ipv4, '/who')), `${ours} is not ${server.ipv4}`);
  assert.match(await curl('-H', 'Host: [fd77:2:0::2]:80', urlOf(server.ipv6, '/who')), '[fd77:2:0::2]\n');
});

test('HTTP/1.0, without a Host', async () => {
  assert.match(
    await talk('GET /who HTTP/1.0\r\n\r\n', server.ipv4),
    `${client.ipv4}, 1, linux-tproxy, , ${server.ipv4}\n`,
  );
});

test('bodies, up and down: of known length, in chunks, and after 100 Continue', async () => {
  const heard: string[] = [];
  await using web = await serve((request, response) => {
    heard.push(
      `${request.method} ${request.headers['content-length'] ?? request.headers['transfer-encoding']} ${request.headers.expect}`,
    );
    request.pipe(response);
  });
  const post = (...args: string[]) =>
    curl('--data-binary', '@/run/file', '-o', '/run/echo', ...args, urlOf(ours, '/echo'));
  for (const args of [
    ['-H', 'Expect:'],
    ['-H', 'Expect:', '-H', 'Transfer-Encoding: chunked'],
    ['-H', 'Expect: 100-continue', '-X', 'PUT'],
  ]) {
    writeFileSync('/run/echo', '');
    await post(...args);
    assert.ok(readFileSync('/run/echo').equals(file), args.join());
  }
  assert.equal(heard, [`POST ${file.length} undefined`, 'POST chunked undefined', `PUT ${file.length} 100-continue`]);
  assert.is(web.connections, 3);
});

test('what is no HTTP is refused, and the server never hears of it', async () => {
  const heard: (string | undefined)[] = [];
  await using _ = await serve((request, response) => {
    heard.push(request.url);
    response.end();
  });
  for (const [bytes, status] of [
    ['GET /\r\n\r\n', 400],
    ['hello\r\n\r\n', 400],
    ['GET / HTTP/1.1\r\n\r\n', 400],
    ['GET / HTTP/1.1\nHost: a\n\n', 400],
    ['GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n', 400],
    ['GET / HTTP/1.1\r\nHost: a b\r\n\r\n', 400],
    ['GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n', 400],
    ['GET / HTTP/1.1\r\nHost: a\r\n folded: yes\r\n\r\n', 400],
    ['GET / HTTP/1.1\r\nHost : a\r\n\r\n', 400],
    ['GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n', 400],
    ['POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab', 400],
    ['POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx', 400],
    ['POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n', 400],
    [`GET / HTTP/1.1\r\nHost: ${server.ipv4}\r\n\r\n`, 421],
    ['CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n', 405],
  ] as const)
    assert.match(
      await talk(bytes),
      new RegExp(`^HTTP/1.1 ${status} .*\\r\\n(.*\\r\\n)*Connection: close\\r\\n`),
      JSON.stringify(bytes),
    );
  assert.equal(heard, []);
});

test('a body is never the next request', async () => {
  const heard: string[] = [];
  await using _ = await serve(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    heard.push(`${request.method} ${request.url} ${body.length}`);
    response.end();
  });
  const inner = 'GET /inner HTTP/1.1\r\nHost: a\r\n\r\n';
  const outer = (headers: string, body: string) => `GET /outer HTTP/1.1\r\nHost: a\r\n${headers}\r\n\r\n${body}`;
  const chunk = `${inner.length.toString(16)}\r\n${inner}\r\n0\r\n\r\n`;
  await talk(outer('Transfer-Encoding: chunked\r\nConnection: close', chunk));
  await talk(outer(`Content-Length: ${inner.length}\r\nConnection: close, content-length, host`, inner));
  assert.equal(heard, Array(2).fill(`GET /outer ${inner.length}`));
});

test('requests that are pipelined are answered in turn', async () => {
  await using _ = await serve((request, response) =>
    setTimeout(() => response.end(request.url), request.url === '/one' ? 100 : 0),
  );
  const get = (path: string, more = '') => `GET ${path} HTTP/1.1\r\nHost: a\r\n${more}\r\n`;
  const answers = await talk(get('/one') + get('/two') + get('/three', 'Connection: close\r\n'));
  assert.equal(answers.match(/\/(one|two|three)/g), ['/one', '/two', '/three']);
});

test('a server that refuses is a 502; a body that breaks off does so for the client, too', async () => {
  const nobody = await curl('-w', '%{http_code}', urlOf(ours, '/'));
  assert.match(nobody, /ECONNREFUSED.*502/s);
  await using _ = await serve((request, response) => {
    if (request.url === '/known') response.setHeader('Content-Length', 100);
    response.write('half', () => response.destroy());
  });
  for (const path of ['/known', '/chunked'])
    assert.match(await curl(urlOf(ours, path)).catch((error: Error) => error.message), /curl: \((18|56)\)/, path);
});

test('where the server hangs up between two requests, so does the proxy', async () => {
  await using _ = await serve(({ socket }, response) => {
    response.end('once');
    setTimeout(() => socket.end(), 50);
  });
  assert.match(await talk('GET / HTTP/1.1\r\nHost: a\r\n\r\n'), /\r\n\r\n(4\r\n)?once/);
});

test('WebSocket: handshake through the proxy, frames through the kernel', async () => {
  const serving = `
import asyncio, websockets
async def echo(socket):
    await socket.send(socket.remote_address[0])
    async for message in socket: await socket.send(message)
async def main():
    async with websockets.serve(echo, '${webSockets}', 80, max_size=None):
        print('ready', flush=True)
        await asyncio.Future()
asyncio.run(main())`;
  const calling = `
import asyncio, os, websockets
async def main():
    async with websockets.connect('ws://${webSockets}/', max_size=None) as socket:
        print(await socket.recv())
        for message in ['hello', os.urandom(1000003)]:
            await socket.send(message)
            print(await socket.recv() == message)
asyncio.run(main())`;
  // Debian's, for its modules.
  const peer = lab.spawn('server', '/usr/bin/python3', '-c', serving);
  await peer.until(/ready/);
  assert.is(await lab.run('client', '/usr/bin/python3', '-c', calling), `${client.ipv4}\nTrue\nTrue\n`);
  await proxy.until(/> 10\.77\.8\.9: GET \/ 101, relayed/);
  // Nothing to upgrade there: the answer is passed on.
  const upgrade = ['-H', 'Connection: Upgrade', '-H', 'Upgrade: websocket', '-w', '%{http_code}'];
  assert.match(await curl(...upgrade, urlOf(server.ipv4, '/who')), /, linux-tproxy, .*200$/s);
  await peer.stop();
});

test('SIGTERM ends idle connections, and the router is as it was', async () => {
  const idle = await connectTransparent({ address: server.ipv4, port: 80, netns: lab.netns('client'), mark: 0 });
  idle.write('GET /who HTTP/1.1\r\nHost: a\r\n\r\n');
  await once(idle, 'data');
  await sleep(50);
  const closed = once(
    idle.on('error', () => {}),
    'close',
  );
  const started = performance.now();
  assert.is(await proxy.stop(), 0, proxy.output());
  assert.ok(performance.now() - started < 5000, 'it has not waited for the idle one');
  await closed;
  assert.is(lab.snapshot('router'), before);
});

test.run();
