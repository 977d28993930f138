/** examples/tls-sni between curl, openssl s_client and nginx: who is let through, by which name, and how it is told. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect } from 'node:tls';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent } from '../../src/index.js';
import { startExample } from '../helpers/examples.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { until } from '../helpers/wait.js';
import { families, listening } from '../helpers/web.js';

const test = suite('tls-sni');
let lab: Lab;
let proxy: Program;
let before: string;
/** How one fares that says nothing, and for how long. */
let silent: Promise<[string, number]>;
const file = randomBytes(1_000_003);

test.before(async () => {
  lab = await createLab();
  const certificate = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=lab'];
  execFileSync('openssl', ['req', ...certificate, '-keyout', '/run/key', '-out', '/run/certificate'], {
    stdio: 'pipe',
  });
  writeFileSync('/run/file', file);
  writeFileSync(
    '/run/nginx.conf',
    `user root; daemon off; master_process off; pid /run/nginx.pid; error_log stderr;
    events {}
    http {
      log_format names '$remote_addr $ssl_server_name';
      access_log /run/access.log names;
      client_body_temp_path /run/b; proxy_temp_path /run/p; fastcgi_temp_path /run/f; uwsgi_temp_path /run/u; scgi_temp_path /run/s;
      server {
        listen 443 ssl; listen [::]:443 ssl;
        ssl_certificate /run/certificate; ssl_certificate_key /run/key;
        location / { root /run; }
      }
    }`,
  );
  lab.spawn('server', 'nginx', '-c', '/run/nginx.conf');
  await listening(lab, 443, 'server');
  before = lab.snapshot('router');
  proxy = await startExample(
    lab,
    'tls-sni',
    '--allow',
    '*.example.org',
    '--allow',
    'example.net',
    '--deny',
    'bad.example.org',
  );
  const started = performance.now();
  silent = answer(await dial()).then((how) => [how, performance.now() - started]);
});
test.after(() => lab.dispose());

async function dial(): Promise<Socket> {
  const to = { address: addresses.server.ipv4, port: 443, netns: lab.netns('client'), mark: 0, timeoutMs: 30_000 };
  const socket = await connectTransparent(to);
  return socket.on('error', () => {}).setNoDelay();
}

const curl = (name: string, family: (typeof families)[number] = 'ipv4') => {
  const host = family === 'ipv6' ? `[${addresses.server.ipv6}]` : addresses.server.ipv4;
  return lab.run(
    'client',
    'curl',
    '-sS',
    '--insecure',
    '--max-time',
    '30',
    '--resolve',
    `${name}:443:${host}`,
    '-o',
    '/run/got',
    `https://${name}/file`,
  );
};

const log = () => readFileSync('/run/access.log', 'utf8');

/** What curl fails with. */
const refused = (name: string) =>
  curl(name).then(
    () => 'nothing',
    (error: Error) => error.message,
  );

/** What a client says first: OpenSSL's. */
const hello = (servername: string) =>
  new Promise<Buffer>((resolve) => {
    const wire = new Duplex({ read() {}, write: (chunk) => resolve(chunk) });
    connect({ socket: wire, servername }).on('error', () => {});
  });

/** The first byte of the answer (22: a handshake, 21: an alert), or the error. */
const answer = (socket: Socket) =>
  once(socket, 'data').then(
    ([chunk]) => chunk[0],
    (error) => error.code,
  );

for (const family of families)
  test(`${family}: an allowed name passes, whole, and the server sees the client and answers by its own certificate`, async () => {
    for (const name of ['www.example.org', 'example.net']) {
      await curl(name, family);
      assert.ok(readFileSync('/run/got').equals(file));
      await until(() => log().endsWith(`${addresses.client[family]} ${name}\n`), 'it is in the log');
    }
    const host = family === 'ipv6' ? `[${addresses.server.ipv6}]` : addresses.server.ipv4;
    const shown = await lab.run(
      'client',
      'sh',
      '-c',
      `openssl s_client -connect ${host}:443 -servername a.example.org </dev/null`,
    );
    assert.ok(shown.includes(readFileSync('/run/certificate', 'utf8').trim()));
  });

test('another name is denied, and the client is told', async () => {
  const lines = log();
  for (const name of ['bad.example.org', 'example.org', 'www.example.com', 'example.net.evil.com'])
    assert.match(await refused(name), /alert access denied/i, name);
  const nameless = `openssl s_client -connect ${addresses.server.ipv4}:443 -noservername </dev/null 2>&1 || true`;
  assert.match(await lab.run('client', 'sh', '-c', nameless), /alert access denied/);
  await proxy.until(/> 10\.77\.2\.2: no name: denied/);
  assert.is(log(), lines);
});

test('a ClientHello byte by byte, and in several records', async () => {
  const whole = await hello('slow.example.org');
  const slow = await dial();
  for (const byte of whole) {
    slow.write(Buffer.of(byte));
    await sleep(1);
  }
  assert.is(await answer(slow), 22);
  const records = await dial();
  for (let at = 5; at < whole.length; at += 40) {
    const part = whole.subarray(at, at + 40);
    records.write(Buffer.concat([Buffer.from([22, 3, 1, 0, part.length]), part]));
  }
  assert.is(await answer(records), 22);
  for (const socket of [slow, records]) socket.destroy();
});

test('what is no ClientHello, or a huge one, or a half one, is reset', async () => {
  for (const bytes of [
    'GET / HTTP/1.1\r\n\r\n',
    '\x16\x03\x01\x40\x00\x01\x00\x40\x00',
    (await hello('a.example.org')).subarray(0, 50),
  ]) {
    const socket = await dial();
    socket.write(bytes, 'latin1');
    if (bytes.length === 50) socket.end();
    assert.is(await answer(socket), 'ECONNRESET');
  }
});

test('who says nothing is not waited for longer than five seconds', async () => {
  const [how, milliseconds] = await silent;
  assert.is(how, 'ECONNRESET');
  assert.ok(milliseconds > 4900 && milliseconds < 30_000, `${milliseconds} ms`);
});

test('SIGTERM: the router is as it was', async () => {
  assert.is(await proxy.stop(), 0, proxy.output());
  assert.is(lab.snapshot('router'), before);
});

test.run();
