/**
 * Both ends of a connection, in a process that nobody blocks. First line of stdout: the port of its echo server. It connects
 * to the port that it then reads from stdin, and plays ping-pong with 64 bytes for 1.5 s: last line, the slowest in ms.
 */
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { dial, echo } from './relays.js';

const server = await echo();
console.log(server.port);
const [port] = (await once(createInterface(process.stdin), 'line')) as [string];
const socket = await dial(Number(port));
socket.setNoDelay();
let slowest = 0;
let rounds = 0;
const ping = Buffer.alloc(64);
for (const end = performance.now() + 1500; performance.now() < end; rounds++) {
  const sent = performance.now();
  socket.write(ping);
  await once(socket, 'data');
  if (rounds === 0) console.log('started');
  slowest = Math.max(slowest, performance.now() - sent);
}
console.log(JSON.stringify({ rounds, slowest }));
process.exit(0);
