/** System calls that are refused to the native relay, by a container or a security policy (here a seccomp filter). Needs a network namespace with `lo` up. */
import * as assert from 'uvu/assert';
import { Counter } from '../../src/native.js';
import { refused, relayChild, startRelay } from '../helpers/programs.js';
import { relaySuite } from '../helpers/relay-suite.js';
import { dial, drain, echo, pour } from '../helpers/relays.js';

const MiB = 1024 * 1024;
const { test, testWith, run } = relaySuite('relay, refused');

for (const code of ['EPERM', 'EACCES', 'ENOSYS', 'EINVAL'])
  test(`where splice gives ${code}, bytes are copied and none is lost`, async ({ engine }) => {
    const server = await echo();
    const { next, port } = await startRelay(refused([`splice=${code}`], relayChild(server.port, engine)));
    const client = await dial(port);
    const reading = drain(client);
    const sent = await pour(client, 16 * MiB, 9);
    client.end();
    assert.equal(await reading, { bytes: 16 * MiB, hash: sent });
    const { counters } = await next((line) => line.kind === 'ended');
    assert.equal([counters?.[Counter.spliced], counters?.[Counter.copied]], ['0', `${32 * MiB}`]);
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

run();
