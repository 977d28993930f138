/**
 * The demo, `npm run demo`: a client and a server that know of no proxy, and linux-tproxy on the router between them.
 * All of it plays in namespaces of its own; every line it prints is checked, and it exits with 1 when a check fails.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream, statSync, writeFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { pipeline } from 'node:stream/promises';
import { parseArgs } from 'node:util';
import type { Endpoint, Family, Flow, Relay, TransparentServer } from '../src/index.js';
import type { Lab, Program } from '../test/helpers/lab.js';
import { inNamespaces, namespaced, rootless } from '../test/helpers/namespaces.js';
import { bytes, digest } from '../test/helpers/peers/bytes.mjs';
import { snapshot } from '../test/helpers/snapshot.js';

const help = `usage: npm run demo -- [--size SIZE] [--nginx] [--verbose]

  --size SIZE   of the download: 64M, 2G, ... (default 1G)
  --nginx       the server is this machine's nginx instead of Node's http
  --verbose     also the ip and nft commands that equal what is installed
`;

const terminal = process.stdout.isTTY === true && process.env['NO_COLOR'] === undefined;
const paint = (code: number) => (text: string) => (terminal ? `\x1b[${code}m${text}\x1b[0m` : text);
const [bold, dim, red, green] = [paint(1), paint(2), paint(31), paint(32)] as const;

const options = readOptions();
let failed = 0;
if (inNamespaces) {
  await inside().catch((error: Error) => {
    console.error(red(error.stack ?? error.message));
    process.exit(1);
  });
} else outside();
process.exitCode = failed ? 1 : 0;

function readOptions(): { size: number; nginx: boolean; verbose: boolean } {
  const misuse = (message: string): never => {
    process.stderr.write(`${message}\n\n${help}`);
    process.exit(2);
  };
  const flag = { type: 'boolean', default: false } as const;
  try {
    const { values } = parseArgs({
      options: { size: { type: 'string', default: '1G' }, nginx: flag, verbose: flag, help: { ...flag, short: 'h' } },
    });
    if (values.help) {
      process.stdout.write(help);
      process.exit(0);
    }
    const [, count, unit = ''] = values.size.match(/^([1-9]\d*)([KMG]?)$/i) ?? misuse(`Not a size: ${values.size}`);
    return { ...values, size: Number(count) * 1024 ** ' KMG'.indexOf(unit.toUpperCase() || ' ') };
  } catch (error) {
    return misuse((error as Error).message);
  }
}

// ---- the machine's own namespaces: only looked at, before and after -------------------------------------------------------

function outside(): void {
  if (options.size * (options.nginx ? 2 : 1) > freemem() / 2) {
    console.error('The download is kept in memory, of which this machine has too little free: try --size 64M.');
    failed++;
    return;
  }
  const [probe, ...probeArgs] = namespaced(['true']);
  const { status, stderr } = spawnSync(probe, probeArgs, { encoding: 'utf8' });
  if (status !== 0) {
    console.error(`${stderr}The demo needs namespaces of its own: run it as root, or let users have user namespaces`);
    console.error('(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0).');
    failed++;
    return;
  }
  const before = snapshot();
  console.log(`
  ${bold('client')} ─────────────────── ${bold('router')} ─────────────────── ${bold('server')}
  10.77.1.2              linux-tproxy              10.77.2.2
  fd77:1::2              takes port 80             fd77:2::2

  ${dim('Neither client nor server knows of a proxy. All three are network namespaces of')}
  ${dim(`the demo's own${rootless ? ', in a user namespace: you are not root' : ''}.`)}
`);
  const [file, ...args] = namespaced([process.execPath, ...process.execArgv, ...process.argv.slice(1)]);
  failed += spawnSync(file, args, { stdio: 'inherit' }).status === 0 ? 0 : 1;
  check('this machine', 'its rules and routes were never touched', snapshot() === before);
  console.log(failed ? red('\nSomething failed.\n') : '');
}

// ---- client, router, server -----------------------------------------------------------------------------------------------

interface Scene {
  readonly lab: Lab;
  readonly web: Program;
  readonly flows: Flow[];
  readonly relays: Relay[];
  readonly expectedHash: string;
}

async function inside(): Promise<void> {
  const { createTransparentServer } = await import('../src/index.js');
  const { createLab } = await import('../test/helpers/lab.js');
  const lab = await createLab();
  const before = lab.snapshot('router');
  const web = options.nginx ? await startNginx(lab) : await startNode(lab);
  const flows: Flow[] = [];
  const relays: Relay[] = [];

  const server = createTransparentServer({
    netns: lab.netns('router'),
    intercept: { tcp: [80] },
    relay: (flow) => {
      flows.push(flow);
      return { kind: 'relay' };
    },
  });
  server.on('relay', (relay) => relays.push(relay));
  server.listen(50080);
  await once(server, 'listening');
  if (options.verbose) say('equal commands', `\n${String(server.rules?.plan).trimEnd().replace(/^/gm, '    ')}\n`);

  const scene: Scene = { lab, web, flows, relays, expectedHash: digest(options.size) };
  for (const family of ['ipv4', 'ipv6'] as const) await visit(scene, family);

  await close(server);
  await web.stop();
  say('afterwards', '');
  check('router', 'rule set, rules and routes as before', lab.snapshot('router') === before);
  await lab.dispose();
}

async function visit({ lab, web, flows, relays, expectedHash }: Scene, family: Family): Promise<void> {
  const { addresses } = await import('../test/helpers/lab.js');
  const client = addresses.client[family];
  const target: Endpoint = { family, address: addresses.server[family], port: 80 };
  const url = (path: string) => `http://${family === 'ipv6' ? `[${target.address}]` : target.address}${path}`;

  say(family === 'ipv4' ? 'IPv4' : 'IPv6', '');
  say('client asks', `curl ${url('/')}`);
  const page = await lab.run('client', 'curl', '-sS', '--max-time', '10', url('/'));
  const flow = flows.pop();
  check(
    'router takes',
    flow ? `${text(flow.source)} → ${text(flow.originalDestination)}` : 'nothing',
    flow?.source.address === client && text(flow.originalDestination) === text(target),
  );
  const [, logged] = await web.until(new RegExp(`^request / ${client} (.*)$`, 'm')).catch(() => []);
  check('server logs', logged ? `GET / from ${client}` : web.output().trim(), logged !== undefined);
  check('client reads', page.trim(), page === `Hello ${client}, this is ${target.address}.\n`);

  const download = await fetchAndHash(lab, url('/download'), () => relays.at(-1)?.stats().bytesFromServer ?? 0n);
  const relay = relays.at(-1);
  const result = await relay?.closed;
  const rate = download.received / download.seconds / 1e9;
  check(
    'download',
    `${readable(download.received)} in ${download.seconds.toFixed(2)} s, ${rate.toFixed(2)} GB/s`,
    download.received === options.size,
  );
  check('sha256', `${download.hash.slice(0, 32)}… as sent`, download.hash === expectedHash);
  check(
    'relay',
    `${result?.bytesFromServer} bytes from the server, none through JavaScript (engine ${relay?.engine})`,
    flows.pop()?.source.address === client && result?.reason === 'end' && result.bytesFromServer > BigInt(options.size),
  );
  console.log();
}

/** curl in the client, to memory, and only then the hash, so that the rate is the network's; `progress` is what the relay says of itself. */
async function fetchAndHash(lab: Lab, url: string, progress: () => bigint) {
  const bar = setInterval(() => drawBar(Number(progress()) / options.size), 50);
  const curl = [
    'curl',
    '-sS',
    '--connect-timeout',
    '5',
    '--output',
    '/run/received',
    '--write-out',
    '%{time_total}',
  ] as const;
  const seconds = Number(await lab.run('client', ...curl, url));
  clearInterval(bar);
  if (terminal) process.stdout.write('\r\x1b[K');
  const hash = createHash('sha256');
  await pipeline(createReadStream('/run/received', { highWaterMark: 1 << 20 }), hash);
  return { received: statSync('/run/received').size, hash: hash.digest('hex'), seconds };
}

async function close(server: TransparentServer): Promise<void> {
  server.close();
  await once(server, 'close');
}

function startNode(lab: Lab): Promise<Program> {
  return lab.node('server', new URL('demo-web.mjs', import.meta.url), String(options.size));
}

/** Debian's nginx with a real file; /run is a tmpfs of the demo's own. One process and one user: a user namespace has no other. */
async function startNginx(lab: Lab): Promise<Program> {
  for (const chunk of bytes(options.size)) writeFileSync('/run/download', chunk, { flag: 'a' });
  writeFileSync(
    '/run/nginx.conf',
    `user root; daemon off; master_process off; pid /run/nginx.pid; error_log stderr;
    events {}
    http {
      log_format demo 'request $uri $remote_addr $remote_port';
      access_log /run/access.log demo;
      client_body_temp_path /run/b; proxy_temp_path /run/p; fastcgi_temp_path /run/f; uwsgi_temp_path /run/u; scgi_temp_path /run/s;
      sendfile on;
      server {
        listen 80; listen [::]:80;
        location = / { return 200 "Hello $remote_addr, this is $server_addr.\\n"; }
        location = /download { root /run; }
      }
    }`,
  );
  const web = lab.spawn('server', 'nginx', '-c', '/run/nginx.conf');
  await lab
    .run('server', 'timeout', '5', 'sh', '-c', 'until curl -s http://10.77.2.2/; do sleep 0.05; done')
    .catch(() => Promise.reject(new Error(`nginx did not start: ${web.output()}`)));
  return lab.spawn('server', 'tail', '-f', '/run/access.log');
}

// ---- what is printed ------------------------------------------------------------------------------------------------------

function say(what: string, how: string): void {
  console.log(how ? `    ${dim(what.padEnd(13))} ${how}` : `  ${bold(what)}`);
}

function check(what: string, how: string, ok: boolean): void {
  if (!ok) failed++;
  say(what, `${how} ${ok ? green('✔') : red('✘ FAILED')}`);
}

function drawBar(part: number): void {
  if (!terminal) return;
  const done = Math.min(40, Math.floor(part * 40));
  process.stdout.write(
    `\r    ${dim('download'.padEnd(13))} ${'█'.repeat(done)}${dim('░'.repeat(40 - done))} ${Math.floor(part * 100)} %`,
  );
}

function text({ family, address, port }: Endpoint): string {
  return family === 'ipv6' ? `[${address}]:${port}` : `${address}:${port}`;
}

function readable(count: number): string {
  const power = Math.min(3, Math.floor(Math.log2(count) / 10));
  return `${Number((count / 1024 ** power).toFixed(2))} ${['bytes', 'KiB', 'MiB', 'GiB'][power]}`;
}
