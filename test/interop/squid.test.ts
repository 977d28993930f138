/** Debian's Squid behind `linux-tproxy up` and `run`: it sees the original destination, the server sees the client. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type Backend, backends, expresses } from '../helpers/backends.js';
import { cli, command, succeed } from '../helpers/cli.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { oneUser } from '../helpers/namespaces.js';
import { testUnless } from '../helpers/skip.js';
import { until } from '../helpers/wait.js';
import { browse, families, listening, serve } from '../helpers/web.js';

const test = suite('squid');
let lab: Lab;
let before: string;
const port = 50080;
const interceptBy = (backend: Backend) => ['--to-port', String(port), '--tcp', '80', '--backend', backend];
const squid = ['squid', '-N', '-f', '/run/squid/squid.conf'] as const;
const noUsers =
  oneUser && 'squid changes to a user of its own, and a user namespace made without root has one user only';

const configuration = `
http_port ${port} tproxy
http_port 127.0.0.1:3128
http_access allow all
cache deny all
visible_hostname router
pid_filename /run/squid/pid
cache_log /run/squid/cache.log
coredump_dir /run/squid
netdb_filename none
pinger_enable off
shutdown_lifetime 0 seconds
# The client, the original destination, and where the connection to the server comes from.
logformat addresses %>a %>la:%>lp %<la %>Hs
access_log stdio:/run/squid/access.log addresses
`;

test.before(async () => {
  lab = await createLab();
  if (noUsers) return;
  execFileSync('install', ['-d', '-o', 'proxy', '/run/squid']);
  writeFileSync('/run/squid/squid.conf', configuration);
  await serve(lab);
  before = lab.snapshot('router');
});
test.after(() => lab.dispose());

/** Both families arrive, and squid's log has them as they are. */
async function proxies(): Promise<void> {
  await listening(lab, port);
  writeFileSync('/run/squid/access.log', '');
  await browse(lab);
  const log = () => readFileSync('/run/squid/access.log', 'utf8');
  await until(() => log().split('\n').length >= 3, 'both are in the log').catch(() => {});
  assert.equal(
    log().trim().split('\n'),
    families.map((family) => {
      const [client, server] = [addresses.client[family], addresses.server[family]];
      return `${client} ${server}:80 ${client} 200`;
    }),
  );
}

for (const backend of backends) {
  const intercept = interceptBy(backend);
  testUnless(noUsers, test, `${backend}: behind up`, async () => {
    const program = lab.spawn('router', ...squid);
    await succeed(cli(lab, 'router', 'up', ...intercept));
    await proxies();
    await program.stop();
    if (expresses(backend, 'onDown open')) await browse(lab); // without it
    await succeed(cli(lab, 'router', 'down'));
    assert.is(lab.snapshot('router'), before);
  });

  testUnless(noUsers, test, `${backend}: behind run: SIGTERM ends both, and the host is as before`, async () => {
    const program = lab.spawn('router', ...command('run', ...intercept, '--', ...squid));
    await proxies();
    assert.is(await program.stop(), 0, program.output());
    assert.is(lab.snapshot('router'), before);
  });

  testUnless(
    noUsers,
    test,
    `${backend}: behind run, which is killed -9: pages arrive at once, without squid`,
    async () => {
      const program = lab.spawn('router', ...command('run', ...intercept, '--', ...squid));
      await proxies();
      const child = Number(readFileSync('/run/squid/pid', 'utf8'));
      program.process.kill('SIGKILL');
      await once(program.process, 'exit');
      if (backend === 'nftables') assert.is(lab.exec('router', 'nft', 'list', 'tables'), '');
      else await until(() => !lab.exec('router', 'ip', 'rule').includes('proto 84'), 'the guard has done its work');
      writeFileSync('/run/squid/access.log', '');
      await browse(lab);
      process.kill(child, 0);
      assert.is(readFileSync('/run/squid/access.log', 'utf8'), '', 'squid runs on, and sees nothing');
      process.kill(child, 'SIGKILL');
      await succeed(cli(lab, 'router', 'down'));
      assert.is(lab.snapshot('router'), before);
    },
  );
}

test.run();
