// takes long
/** `linux-tproxy run --persist`: rules that outlive the command and who runs it, and go over to the next one. */
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type Installed, listInstalled } from '../../src/index.js';
import { cli, command, succeed } from '../helpers/cli.js';
import { compiled } from '../helpers/compiled.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { stream } from '../helpers/stream.js';
import { ask, greet } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';

const test = suite('run --persist');
const proxy = (port: number) => [process.execPath, compiled('test/helpers/proxy.ts'), String(port)];
let lab: Lab;
let before: string;

test.before(async () => {
  lab = await createLab();
  await greet(lab, 'server', 'server', 80);
  before = lab.snapshot('router');
});
test.after(() => lab.dispose());
/** However a test ends, the next one begins anew. */
const started = new Set<number>();
test.after.each(async () => {
  for (const pid of started)
    try {
      process.kill(pid, 'SIGKILL');
    } catch {} // it has ended
  started.clear();
  await cli(lab, 'router', 'down', '--all');
  await until(() => lab.snapshot('router') === before, 'all of it is gone');
});

const options = ['--persist', '--name', 'web', '--tcp', '80', '--on-down', 'closed'];
const run = (port: number, ...more: string[]) => ['run', ...options, '--to-port', String(port), ...more];
/** With the proxy as COMMAND, once that listens; its process id is that of its greeting. */
async function running(port: number, ...more: string[]): Promise<Program & { readonly pid: number }> {
  const program = lab.spawn('router', ...command(...run(port, ...more, '--', ...proxy(port))));
  started.add(program.process.pid as number);
  const pid = Number((await program.until(/^here (\d+)$/m))[1]);
  started.add(pid);
  return { ...program, pid };
}
const status = async (): Promise<Installed | undefined> =>
  (await listInstalled({ netns: lab.netns('router') })).installed[0];
const answering = async (options = {}) =>
  Promise.all((['ipv4', 'ipv6'] as const).map((family) => ask(lab, 'client', addresses.server[family], 80, options)));
const both = (who: unknown) => [String(who), String(who)];

test('kill -9 of who runs it: the command is served on, until the next one takes over', async () => {
  const first = await running(50080);
  first.process.kill('SIGKILL');
  await once(first.process, 'exit');
  const orphan = await status();
  assert.equal([orphan?.lifetime, orphan?.owner, orphan?.intact], ['persist', undefined, true]);
  assert.equal(await answering(), both(first.pid));
  process.kill(first.pid, 'SIGKILL');
  const second = await running(50080);
  assert.equal(await answering(), both(second.pid));
  assert.is((await status())?.owner?.processId, second.process.pid);
});

test('kill -9 of the command: nothing goes past it until the next one is there', async () => {
  const first = await running(50080);
  process.kill(first.pid, 'SIGKILL');
  assert.is(await first.stop('SIGCONT'), 128 + 9);
  assert.equal(await answering({ timeoutMs: 1500 }), both('ETIMEDOUT'));
  const second = await running(50080);
  assert.equal(await answering(), both(second.pid));
});

test('a normal end: the rules wait for the grace, and go', async () => {
  const ending = cli(lab, 'router', ...run(50080, '--grace', '1.5', '--', 'true'));
  await succeed(ending);
  assert.is((await status())?.owner, undefined);
  assert.match((await cli(lab, 'router', 'status')).stdout, /^web: ORPHAN/);
  await until(() => lab.snapshot('router') === before, 'they go');
});

test('taken over by the next version on another port, under a stream of connections', async () => {
  const first = await running(50080);
  const clients = stream(lab);
  await until(() => clients.answered().length === 1, 'it answers');
  // It is not asked before the other one listens.
  const slow = ['sh', '-c', 'echo begun; until [ -e /run/go ]; do sleep 0.05; done; exec "$@"', 'sh', ...proxy(50081)];
  const second = lab.spawn('router', ...command(...run(50081, '--', ...slow)));
  started.add(second.process.pid as number);
  await second.until(/^begun$/m);
  await sleep(300);
  assert.is((await status())?.owner?.processId, first.process.pid);
  writeFileSync('/run/go', '');
  started.add(Number((await second.until(/^here (\d+)$/m))[1]));
  await first.until(
    new RegExp(`^linux-tproxy run: process ${second.process.pid} \\(node\\) has taken over web: no more`, 'm'),
  );
  await until(() => clients.answered().length === 2, 'so does the next one');
  const connections = () => lab.exec('router', 'ss', '-Htnp');
  await until(() => !connections().includes(`pid=${first.pid},`), 'those of the first have ended');
  assert.is(await first.stop(), 128 + 15);
  const { direct, broken } = await clients.end();
  assert.equal({ direct, broken }, { direct: 0, broken: {} });
  assert.is((await status())?.owner?.processId, second.process.pid);
});

test('in another namespace', async () => {
  const netns = ['--netns', 'router'];
  const start = (port: number) => lab.spawn('client', ...command(...run(port, ...netns, '--', ...proxy(port))));
  const programs = [start(50080)];
  started.add(programs[0]?.process.pid as number);
  for (const port of [50081, 50082]) {
    const program = programs.at(-1) as Program;
    const [, pid = ''] = await program.until(/^here (\d+)$/m);
    started.add(Number(pid));
    assert.equal(await answering(), both(pid));
    const next = start(port);
    started.add(next.process.pid as number);
    programs.push(next);
    await program.until(/has taken over web/);
  }
  started.add(Number((await (programs[2] as Program).until(/^here (\d+)$/m))[1]));
});

test('whoever comes to nothing takes nothing away', async () => {
  const { status: code, stderr } = await cli(lab, 'router', ...run(50080, '--', '/no/such/command'));
  assert.equal([code, stderr], [127, 'linux-tproxy run: cannot run /no/such/command: there is no such command\n']);
  assert.is(lab.snapshot('router'), before, 'there was nothing');

  const first = await running(50080);
  const same = await cli(lab, 'router', ...run(50080, '--', 'true'));
  assert.is(same.status, 1);
  assert.match(
    same.stderr,
    `linux-tproxy run: web belongs to process ${first.process.pid} (node), and goes to port 50080 already.`,
  );
  for (const [words, expected] of [
    [['/no/such/command'], 127],
    [['sh', '-c', 'exit 7'], 7],
  ] as const)
    assert.is((await cli(lab, 'router', ...run(50081, '--', ...words))).status, expected);
  assert.is((await status())?.owner?.processId, first.process.pid);
  assert.equal(await answering(), both(first.pid));

  process.kill(first.pid);
  await first.stop('SIGCONT');
  assert.is((await cli(lab, 'router', ...run(50080, '--', '/no/such/command'))).status, 127);
  assert.is((await status())?.owner, undefined, 'the next one may come');
});

test('a signal while it waits for the command to listen ends the command, and takes over nothing', async () => {
  const first = await running(50080);
  const second = lab.spawn('router', ...command(...run(50081, '--', 'sh', '-c', 'echo there; exec sleep 100')));
  await second.until(/^there$/m);
  assert.is(await second.stop('SIGTERM'), 128 + 15);
  assert.is((await status())?.owner?.processId, first.process.pid);
});

test.run();
