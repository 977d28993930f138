/** The options of a relaying server, through the real rules: threads, drain, dead peers, late servers. */
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  connectTransparent,
  createTransparentServer,
  type Relay,
  type TransparentServer,
  type TransparentServerOptions,
} from '../../src/index.js';
import type { Engine } from '../../src/types.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { start, stop, stopAll } from '../helpers/proxies.js';
import { endOf, readAll } from '../helpers/relays.js';
import { until, within } from '../helpers/wait.js';

const suiteOf = suite('relay options');
const target = addresses.server.ipv4;
const engines = ['uring', 'epoll'] satisfies Engine[];
let lab: Lab;

suiteOf.before(async () => {
  lab = await createLab();
  await lab.node('server', new URL('../helpers/peers/echo.mjs', import.meta.url), '9001');
});
suiteOf.after.each(stopAll);
suiteOf.after(() => lab.dispose());

const test = (what: string, body: (engine: Engine) => Promise<void>) => {
  for (const engine of engines)
    suiteOf(
      `${engine}: ${what}`,
      within(100_000, () => body(engine)),
    );
};
const router = (engine: Engine, options: Partial<TransparentServerOptions> = {}): Promise<TransparentServer> =>
  start(
    createTransparentServer({
      intercept: { tcp: [9001, 9002] },
      relay: true,
      netns: lab.netns('router'),
      engine,
      drainTimeoutMs: 1000, // a test that failed must come to its end
      ...options,
    }),
  );
const dial = (port = 9001) =>
  connectTransparent({ address: target, port, netns: lab.netns('client'), allowHalfOpen: true, mark: 0 });
const relayThreads = () =>
  readdirSync('/proc/self/task').filter((id) => {
    try {
      return readFileSync(`/proc/self/task/${id}/comm`, 'utf8') === 'tproxy-relay\n';
    } catch {
      return false; // it has ended meanwhile
    }
  });
/** How often a thread was given a CPU. */
const ran = (id: string) => Number(readFileSync(`/proc/self/task/${id}/schedstat`, 'utf8').split(' ')[2]);

test('threads: each accepts its part, the totals are one, and all end together', async (engine) => {
  const before = relayThreads();
  const server = await router(engine, { threads: 3 });
  const newThreads = () => relayThreads().filter((id) => !before.includes(id));
  await until(() => newThreads().length >= 2, 'there are two threads more'); // one may be there already, for this namespace
  const added = newThreads();
  const idle = added.map(ran);
  const sockets = await Promise.all(Array.from({ length: 120 }, () => dial()));
  await Promise.all(
    sockets.map(async (socket, index) => {
      socket.end(`connection ${index}`);
      assert.is(`${await readAll(socket)}`, `connection ${index}`);
    }),
  );
  assert.ok(
    added.every((id, index) => ran(id) > (idle[index] as number)),
    'every thread had work',
  );
  await until(() => server.stats().connections.open === 0, 'all have ended');
  assert.is(server.stats().connections.total, 120);
  await stop(server);
  // The port is free at once.
  await stop(await router(engine, { threads: 3 }));
});

test('threads with decisions: each is asked for', async (engine) => {
  let asked = 0;
  await router(engine, {
    threads: 2,
    relay: () => {
      asked++;
      return { kind: 'relay' };
    },
  });
  await Promise.all(
    Array.from({ length: 40 }, async () => {
      const socket = await dial();
      socket.end('x');
      assert.is(`${await readAll(socket)}`, 'x');
    }),
  );
  assert.is(asked, 40);
});

test('close() waits for relays, but not longer than drainTimeoutMs', async (engine) => {
  const server = await router(engine, { drainTimeoutMs: 1500 });
  const [quick, slow] = [await dial(), await dial()];
  for (const socket of [quick, slow]) {
    socket.write('x');
    await once(socket, 'data');
  }
  const end = endOf(slow);
  const started = performance.now();
  const closed = stop(server);
  quick.end('still served');
  assert.is(`${await readAll(quick)}`, 'still served');
  assert.is(await end, 'ECONNRESET');
  await closed;
  const took = performance.now() - started;
  assert.ok(took > 1490, `${took} ms`);
});

test('a peer that vanished: after userTimeoutMs the relay ends, and the other side hears of it', async (engine) => {
  const relays: Relay[] = [];
  const server = await router(engine, { relay: () => ({ kind: 'relay' }), keepAliveMs: 1000, userTimeoutMs: 1500 });
  server.on('relay', (relay) => relays.push(relay));
  const talking = await dial();
  const silent = await dial();
  for (const socket of [talking, silent]) {
    socket.write('x');
    await once(socket, 'data');
  }
  lab.exec(
    'server',
    'nft',
    'add table inet cut; add chain inet cut in { type filter hook input priority 0; policy drop; }',
  );
  const ends = [talking, silent].map(endOf);
  talking.write('is anybody there?'); // the other is found out by keepalive
  assert.equal(await Promise.all(ends), ['ECONNRESET', 'ECONNRESET']);
  lab.exec('server', 'nft', 'delete table inet cut');
  const results = await Promise.all(relays.map(({ closed }) => closed));
  assert.equal(
    results.map(({ reason, error }) => [reason, (error as NodeJS.ErrnoException | undefined)?.code]),
    [
      ['error', 'ETIMEDOUT'],
      ['error', 'ETIMEDOUT'],
    ],
  );
});

test('a server that answers late: what is said before it is there, an end too, waits for it', async (engine) => {
  lab.exec('server', 'nft', 'add table inet late; add chain inet late in { type filter hook input priority 0; }');
  lab.exec('server', 'nft', 'add rule inet late in tcp dport 9001 tcp flags syn drop');
  const server = await router(engine);
  const ended = Array.from({ length: 30 }, async (_, index) => {
    const socket = await dial();
    const text = index % 3 === 0 ? '' : `connection ${index}`.repeat(index * 100);
    socket.end(text);
    assert.is(`${await readAll(socket)}`, text);
  });
  await sleep(300);
  lab.exec('server', 'nft', 'delete table inet late'); // the kernel tries again after a second
  await Promise.all(ended);
  await until(() => server.stats().connections.open === 0, 'all have ended');
  assert.is(server.stats().connectErrors, 0);
  // Nobody listens there.
  await dial(9002).then(endOf, () => {});
  await until(() => server.stats().connectErrors === 1, 'the refused connect is counted');
});

suiteOf('options that cannot be meant', () => {
  const make = (options: TransparentServerOptions) => () => createTransparentServer(options);
  assert.throws(make({ relay: true, threads: 0 }), /threads must be an integer from 1/);
  assert.throws(make({ threads: 2 }), /threads must be 1 without relay/);
  assert.throws(make({ relay: true, drainTimeoutMs: -1 }), /drainTimeoutMs must be a time/);
  assert.throws(make({ relay: true, userTimeoutMs: '1' as unknown as number }), /userTimeoutMs must be a number/);
});

suiteOf.run();
