/** A server that is restarted under a stream of connections: planned none is lost, after kill -9 none goes past it. See also `npm run soak:handover`. */
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { listInstalled, uninstallIntercept } from '../../src/index.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { stream } from '../helpers/stream.js';
import { ask, dial, greet } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';

const test = suite('handover');
const script = new URL('../helpers/persist-server.ts', import.meta.url);
let lab: Lab;
let netns: string;

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  await greet(lab, 'server', 'server', 80);
});
test.after(() => lab.dispose());
test.after.each(async () => {
  await uninstallIntercept({ name: 'web', netns }).catch(() => {});
});

const start = (intercept: object = {}): Promise<Program> =>
  lab.node('router', script, JSON.stringify({ name: 'web', ...intercept }));
const idOf = (server: Program) => Number(/^ready (\d+)/m.exec(server.output())?.[1]);

test('restarted after kill -9 under a stream of connections, closed while it is down: none goes direct', async () => {
  let server = await start({ onDown: 'closed' });
  const clients = stream(lab);
  for (const answered of [1, 2]) {
    await until(() => clients.answered().length === answered, 'it answers');
    await server.stop('SIGKILL');
    server = await start({ onDown: 'closed' });
  }
  await until(() => clients.answered().length === 3, 'so does the last'); // a SYN that was dropped is repeated after a second
  const outcome = await clients.end();
  await server.stop('SIGKILL');
  assert.is(outcome.direct, 0);
});

test('the same without persist goes direct: the stream would show it', async () => {
  let server = await start({ onDown: 'closed', lifetime: 'process' });
  const clients = stream(lab);
  await until(() => clients.answered().length === 1, 'it answers');
  await server.stop('SIGKILL');
  await until(() => clients.answered().includes('server'), 'one goes direct');
  server = await start({ onDown: 'closed', lifetime: 'process' });
  assert.ok((await clients.end()).direct > 0);
  await server.stop('SIGKILL');
});

test('handed over five times under a stream of connections: none goes direct, none breaks', async () => {
  const servers = [await start()];
  const clients = stream(lab);
  for (let restart = 1; restart <= 5; restart++) {
    await until(() => clients.answered().length === restart, 'it answers');
    servers.push(await start());
    await servers[restart - 1]?.until(new RegExp(`^handover to ${idOf(servers[restart] as Program)}$`, 'm'));
  }
  await until(() => clients.answered().length === 6, 'so does the last');
  const outcome = await clients.end();
  assert.equal([outcome.direct, outcome.broken], [0, {}]);
  for (const server of servers.slice(0, -1)) {
    await server.until(/^closed$/m);
    await until(() => server.process.exitCode !== null, 'it ends by itself');
    assert.is(server.process.exitCode, 0);
  }
  const [installed] = (await listInstalled({ netns })).installed;
  assert.is(installed?.owner?.processId, idOf(servers[5] as Program));
  await servers[5]?.stop();
});

test('an open connection lives on in the old process, and keeps it alive', async () => {
  const old = await start();
  const call = await dial(lab, 'client', addresses.server.ipv4, 80);
  assert.is(Number(call.who), idOf(old));
  const next = await start();
  assert.is(Number(await ask(lab, 'client', addresses.server.ipv6, 80)), idOf(next));
  await old.until(/^handover/m);
  await sleep(4500); // longer than it accepts
  await call.echo('still here');
  await call.hangUp();
  await old.until(/^closed$/m);
  await next.stop();
});

test.run();
