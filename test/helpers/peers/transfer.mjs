/**
 * The client of stream.mjs. Exits with 1 unless every byte arrived as it was sent; prints `BYTES SHA256 SECONDS`.
 *   transfer.mjs get ADDRESS PORT BYTES [PAUSE_MS]   PAUSE_MS after each chunk makes a slow reader of it
 *   transfer.mjs put ADDRESS PORT BYTES
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout } from 'node:timers/promises';
import { bytes, digest } from './bytes.mjs';

const [verb, host, port, size, pauseMs = 0] = process.argv.slice(2);
const length = Number(size);
const socket = connect({ host, port: Number(port), allowHalfOpen: true });
const started = performance.now();
let received = 0;
let hash = '';

if (verb === 'get') {
  socket.write(`get ${length}\n`);
  const running = createHash('sha256');
  for await (const chunk of socket) {
    received += chunk.length;
    running.update(chunk);
    if (pauseMs) await setTimeout(Number(pauseMs));
  }
  socket.end();
  hash = running.digest('hex');
} else {
  socket.write('put\n');
  await once(socket, 'data');
  await pipeline(Readable.from(bytes(length)), socket);
  const [answer] = await once(socket, 'data');
  const [count, sum] = String(answer).trim().split(' ');
  received = Number(count);
  hash = sum ?? '';
}
console.log(received, hash, ((performance.now() - started) / 1000).toFixed(3));
assert.deepEqual([received, hash], [length, digest(length)]);
