/** Debian's HAProxy behind `linux-tproxy up` and `run`: it sees the original destination, the server sees the client. */
import { writeFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type Backend, backends, expresses } from '../helpers/backends.js';
import { cli, command, succeed } from '../helpers/cli.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { browse, families, listening, serve } from '../helpers/web.js';

const test = suite('haproxy');
let lab: Lab;
let before: string;
const port = 50080;
const interceptBy = (backend: Backend) => ['--to-port', String(port), '--tcp', '80', '--backend', backend];
const haproxy = ['haproxy', '-db', '-f', '/run/haproxy.cfg'] as const;

// One listener per family. The addresses in the log: the client's, the original destination, and where the connection to
// the server comes from and goes to.
const configuration = `
  global
    log stdout format raw local0
  defaults
    mode http
    log global
    log-format "log %ci %fi:%fp %bi %si:%sp %ST"
    timeout connect 30s
    timeout client 30s
    timeout server 30s
  frontend web
    bind :${port} transparent
    bind :::${port} v6only transparent
    default_backend original
  backend original
    source 0.0.0.0 usesrc clientip
    server orig 0.0.0.0
`;

test.before(async () => {
  lab = await createLab();
  writeFileSync('/run/haproxy.cfg', configuration.replace(/^ {2}/gm, ''));
  await serve(lab);
  before = lab.snapshot('router');
});
test.after(() => lab.dispose());

async function proxies(program: Program): Promise<void> {
  await listening(lab, port);
  await browse(lab);
  for (const family of families) {
    const [client, server] = [addresses.client[family], addresses.server[family]];
    await program.until(new RegExp(`^log ${client} ${server}:80 ${client} ${server}:80 200$`, 'm'));
  }
}

for (const backend of backends) {
  const intercept = interceptBy(backend);
  test(`${backend}: behind up`, async () => {
    const program = lab.spawn('router', ...haproxy);
    await succeed(cli(lab, 'router', 'up', ...intercept));
    await proxies(program);
    const { installed } = JSON.parse(await succeed(cli(lab, 'router', 'status', '--json')));
    // Each family's connection is one that was intercepted, and one whose answers were diverted.
    assert.is(installed[0].counters.intercepted.packets, 2);
    assert.ok(installed[0].counters.diverted.packets > 4);
    await program.stop();
    if (expresses(backend, 'onDown open')) await browse(lab); // without it
    await succeed(cli(lab, 'router', 'down'));
    assert.is(lab.snapshot('router'), before);
  });

  test(`${backend}: behind run; SIGUSR1, its soft stop, is passed on`, async () => {
    const program = lab.spawn('router', ...command('run', ...intercept, '--', ...haproxy));
    await proxies(program);
    assert.is(await program.stop('SIGUSR1'), 0);
    assert.match(program.output(), 'Proxy web stopped');
    assert.is(lab.snapshot('router'), before);
  });
}

test.run();
