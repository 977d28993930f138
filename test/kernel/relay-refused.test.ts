/** System calls that are refused to the native relay, by a container or a security policy (here a seccomp filter). Needs a network namespace with `lo` up. */
import * as assert from 'uvu/assert';
import { Counter } from '../../src/native.js';
import { compiled } from '../helpers/compiled.js';
import { refused, relayChild, startRelay } from '../helpers/programs.js';
import { relaySuite } from '../helpers/relay-suite.js';
import { dial, dialToEnd, drain, echo, pour, pourAll, readAll } from '../helpers/relays.js';

const MiB = 1024 * 1024;
const { test, testWith, run } = relaySuite('relay, refused');

for (const code of ['EPERM', 'EACCES', 'ENOSYS', 'EINVAL'])
  test(`where splice gives ${code} at times, bytes are copied and none is lost`, async ({ engine }) => {
    const server = await echo();
    // With the flags that the relay gives; it asks without any whether it may.
    const { next, port } = await startRelay(refused([`splice:5=3=${code}`], relayChild(server.port, engine)));
    const client = await dial(port);
    const reading = drain(client);
    const sent = await pour(client, 16 * MiB, 9);
    client.end();
    assert.equal(await reading, { bytes: 16 * MiB, hash: sent });
    const { counters } = await next((line) => line.kind === 'ended');
    assert.equal([counters?.[Counter.spliced], counters?.[Counter.copied]], ['0', `${32 * MiB}`]);
  });

for (const code of ['EPERM', 'EACCES', 'ENOSYS'])
  test(`where splice gives ${code}, the engine is copy, and nothing else changes`, async ({ engine }) => {
    const server = await echo();
    const relay = await startRelay(refused([`splice=${code}`], relayChild(server.port, engine)));
    assert.is(relay.engine, 'copy');
    const client = await dial(relay.port);
    const reading = drain(client);
    const sent = await pour(client, 4 * MiB, 9);
    client.end();
    assert.equal(await reading, { bytes: 4 * MiB, hash: sent });
  });

for (const code of ['EPERM', 'EACCES', 'ENOSYS'])
  testWith(
    'uring',
    `where io_uring_setup gives ${code}, the engine is epoll, and nothing else changes`,
    async ({ engine }) => {
      const server = await echo();
      const relay = await startRelay(refused([`io_uring_setup=${code}`], relayChild(server.port, engine)));
      assert.is(relay.engine, 'epoll');
      const client = await dial(relay.port);
      const reading = drain(client);
      const sent = await pour(client, 4 * MiB, 9);
      client.end();
      assert.equal(await reading, { bytes: 4 * MiB, hash: sent });
    },
  );

// ---- no memory, for a while ----------------------------------------------------------------------------------------------

/** The first calls of the relay thread are refused, as many of them as `times` says. */
const scarce = (call: string, code: string, times: number, command: string[]) =>
  startRelay(refused([`${call}=${code}@tproxy-relay*${times}`], command));

test('accept4 without memory: told once, counted, and tried again until it goes', async ({ engine }) => {
  const server = await echo();
  const { next, port } = await scarce('accept4', 'ENOMEM', 3, relayChild(server.port, engine));
  const client = await dial(port);
  client.end('patience');
  assert.is((await next((line) => line.kind === 'acceptFailed')).failure?.code, 'ENOMEM');
  assert.is(`${await readAll(client)}`, 'patience');
  assert.is((await next((line) => line.kind === 'ended')).counters?.[Counter.acceptErrors], '3');
});

for (const code of ['ENOMEM', 'ENOBUFS'])
  test(`socket with ${code}: that client is reset and counted, the next one served`, async ({ engine }) => {
    const server = await echo();
    const { next, port } = await scarce('socket', code, 1, relayChild(server.port, engine));
    assert.is(await dialToEnd(port), 'ECONNRESET');
    const { failure, counters } = await next((line) => line.kind === 'ended');
    assert.is(failure?.code, code);
    assert.equal([counters?.[Counter.connectErrors], counters?.[Counter.connectionsOpen]], ['1', '0']);
    const client = await dial(port);
    client.end('next');
    assert.is(`${await readAll(client)}`, 'next');
  });

test('pipe2 without memory: what has no pipe is copied, and later bytes are spliced', async ({ engine }) => {
  const server = await echo();
  const { next, port } = await scarce('pipe2', 'ENOMEM', 4, relayChild(server.port, engine));
  const client = await dial(port);
  const reading = drain(client);
  const hash = await pourAll(client, 16 * MiB, 9);
  assert.equal(await reading, { bytes: 16 * MiB, hash });
  const { counters } = await next((line) => line.kind === 'ended');
  assert.ok(BigInt(counters?.[Counter.spliced] ?? 0) > 8n * BigInt(MiB), `${counters?.[Counter.spliced]} spliced`);
});

for (const [call, code] of [
  ['io_uring_setup', 'ENOMEM'],
  ['io_uring_setup', 'EMFILE'],
  ['mmap:3=32769', 'ENOMEM'], // MAP_SHARED | MAP_POPULATE: the queues
])
  testWith(
    'uring',
    `${call} with ${code}: the server says so, leaves nothing open, and can be started again`,
    async () => {
      const target = await echo();
      const script = `
      import { once } from 'node:events';
      import { createTransparentServer } from '${compiled('src/index.ts')}';
      import { resources } from '${compiled('test/helpers/relays.ts')}';
      const to = { address: '127.0.0.1', port: ${target.port} };
      const server = createTransparentServer({ relay: { kind: 'relay', to, from: 'proxy' }, engine: 'uring' });
      const before = resources();
      const [{ code }] = await once(server.listen(0, '127.0.0.1'), 'error');
      const isLeft = () => resources().descriptors + resources().threads > before.descriptors + before.threads;
      for (let n = 0; n < 1000 && isLeft(); n++) await new Promise((resolve) => setTimeout(resolve, 10)); // the thread
      const left = isLeft();
      await once(server.listen(0, '127.0.0.1'), 'listening');
      console.log(JSON.stringify({ kind: code, left, engine: server.stats().engine, port: server.address().port }));
    `;
      const evaluate = ['--input-type=module', '-e', script];
      const { next, port, engine } = await scarce(`${call}`, `${code}`, 1, [process.execPath, ...evaluate]);
      const { kind, left } = await next((line) => line.port !== undefined);
      assert.equal([kind, left, engine], [code, false, 'uring']);
      const client = await dial(port);
      client.end('again');
      assert.is(`${await readAll(client)}`, 'again');
    },
  );

run();
