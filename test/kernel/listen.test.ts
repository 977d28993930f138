/** Listening on addresses of others: with the divert part alone, ranges, many at once, and none of it touches a rule. */
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createTransparentServer, installIntercept, type TransparentServer } from '../../src/index.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { collectGarbage } from '../helpers/memory.js';
import { start, stop, stopAll } from '../helpers/proxies.js';
import { ask, greeting } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';

const test = suite('foreign listeners');
let lab: Lab;
let netns: string;
let before: string;
test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  before = lab.snapshot('router');
});
test.after.each(stopAll);
test.after(() => lab.dispose());

const foreign = (name = 'foreign', options = {}) =>
  createTransparentServer({ intercept: {}, netns, ...options }, (socket) => greeting(name, socket));
const listen = async (server: TransparentServer, options: Parameters<TransparentServer['listen']>[0]) => {
  await once(server.listen(options as object), 'listening');
  return server;
};
const portOf = (server: TransparentServer) => server.address()?.port ?? 0;

for (const family of ['ipv4', 'ipv6'] as const) {
  const host = addresses.server[family];

  test(`${family}: port 0, and the first free port of a range`, async () => {
    const any = await listen(foreign(), { port: 0, host });
    assert.is(await ask(lab, 'client', host, portOf(any)), 'foreign');
    const servers: TransparentServer[] = [];
    for (const port of [40000, 40001, 40002]) {
      const server = await listen(foreign(), { port: '40000-40002', host });
      assert.is(portOf(server), port);
      assert.is(await ask(lab, 'client', host, port), 'foreign');
      servers.push(server);
    }
    const [error] = await once(foreign().listen({ port: '40000-40002', host }), 'error').catch((caught) => [caught]);
    assert.equal([error.code, error.port], ['EADDRINUSE', 40002]);
    await stopped(servers[1]);
    const again = await listen(foreign(), { port: '40000-40002', host });
    assert.is(portOf(again), 40001);
    for (const server of [any, again, servers[0], servers[2]]) await stopped(server);
    assert.is(lab.snapshot('router'), before);
  });

  test(`${family}: a wildcard listener takes a range too, and a busy one of somebody else is passed over`, async () => {
    const other = await listen(createTransparentServer({ netns }), { port: 41000, host });
    const server = await listen(foreign(), { port: '41000-41005', host });
    assert.is(portOf(server), 41001);
    const wildcard = await listen(createTransparentServer({ netns }), { port: '41001-41005' });
    assert.is(portOf(wildcard), 41002);
    for (const each of [other, server, wildcard]) await stopped(each);
  });
}

/** What is in use, in JavaScript and by the allocator, in bytes. */
async function memory(): Promise<number> {
  for (let i = 0; i < 3; i++) {
    await setTimeout(50);
    collectGarbage();
  }
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

async function stopped(server: TransparentServer | undefined): Promise<TransparentServer> {
  if (!server) throw new Error('there is none');
  await stop(server);
  return server;
}

test('the rules are installed once, for both families; while listeners come and go they stay as they are', async () => {
  const first = await listen(foreign('first'), { port: 2021, host: addresses.server.ipv4 });
  const rules = lab.snapshot('router');
  const tables = lab.exec('router', 'nft', 'list', 'tables');
  assert.is(tables.trim().split('\n').length, 1);
  const second = await listen(foreign('second'), { port: 2021, host: addresses.client.ipv4 });
  const third = await listen(foreign('third'), { port: 2021, host: addresses.server.ipv6 });
  assert.is(second.rules, first.rules);
  assert.is(lab.snapshot('router'), rules);
  assert.is(await ask(lab, 'client', addresses.server.ipv4, 2021), 'first');
  assert.is(await ask(lab, 'server', addresses.client.ipv4, 2021), 'second');
  assert.is(await ask(lab, 'client', addresses.server.ipv6, 2021), 'third');
  await stop(first);
  assert.is(lab.snapshot('router'), rules, 'the first has gone, the others need them');
  assert.is(await ask(lab, 'server', addresses.client.ipv4, 2021), 'second');
  await Promise.all([stop(second), stop(third)]);
  assert.is(lab.snapshot('router'), before);
  // At once anew, while the others are still taken down.
  const [a, b] = [await start(foreign('a'), 2022, addresses.server.ipv4), foreign('b')];
  const ending = stop(a);
  await listen(b, { port: 2022, host: addresses.server.ipv4 });
  await ending;
  assert.is(await ask(lab, 'client', addresses.server.ipv4, 2022), 'b');
  await stop(b);
  assert.is(lab.snapshot('router'), before);
});

test('10,000 listeners at once, opened and closed again: no rule changes, no descriptor stays', async () => {
  await using rules = await installIntercept({ port: 1, netns });
  const descriptors = () => readdirSync('/proc/self/fd').length;
  const installed = lab.snapshot('router');
  const round = async (count: number) => {
    const servers = Array.from({ length: count }, () => createTransparentServer({ netns }));
    await Promise.all(
      servers.map((server, index) => {
        const host = index % 2 === 0 ? addresses.server.ipv4 : addresses.server.ipv6;
        return listen(server, { port: 20000 + index, host });
      }),
    );
    const open = descriptors();
    await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
    return open;
  };
  await round(100); // what is made once is made
  const idle = descriptors();
  assert.ok((await round(10_000)) >= idle + 10_000);
  await until(() => descriptors() <= idle, 'all are closed');
  const grown: number[] = [];
  // A second round takes the room of the first, or the third that of the second.
  while (grown.length < 3 && !grown.some((each) => each < 4)) {
    const held = await memory();
    await round(10_000);
    await until(() => descriptors() <= idle, 'all are closed');
    grown.push(((await memory()) - held) / 2 ** 20);
  }
  assert.ok(Math.min(...grown) < 4, `${grown} MB`);
  assert.is(lab.snapshot('router'), installed);
  assert.equal(await rules.verify(), { intact: true, missing: [] });
});

test('one address, opened and closed 1,000 times: each takes connections, none is left', async () => {
  await using _rules = await installIntercept({ port: 1, netns });
  const host = addresses.server.ipv4;
  for (let round = 0; round < 1000; round++) {
    const server = createTransparentServer({ netns }, (socket) => greeting(`round ${round}`, socket));
    await listen(server, { port: 2020, host });
    if (round % 100 === 0) assert.is(await ask(lab, 'client', host, 2020), 'round');
    await new Promise((resolve) => server.close(resolve));
  }
  assert.is(lab.exec('router', 'ss', '-Hltn'), '');
});

test('what cannot be meant', () => {
  const server = createTransparentServer();
  assert.throws(() => server.listen({ port: '1-2-3' }), /port/);
  assert.throws(() => server.listen({ port: '70000' }), /65535/);
  assert.throws(() => server.listen({ port: 80, systemd: 'x' }), /systemd must be given without port/);
  const redirecting = createTransparentServer({ intercept: { tcp: [80], mode: 'redirect' } });
  assert.throws(() => redirecting.listen(80, '10.0.0.1'), /address .*redirect/);
});

test.run();
