/**
 * Opens connections from one address and holds them: connect-many.ts COUNT FROM TO:PORT...  (to each in turn).
 * Prints `ready`, how many there are, and the first error if there was one. Ends with its standard input.
 */
import type { Socket } from 'node:net';
import { connectTransparent } from '../../src/index.js';

const [count, localAddress, ...targets] = process.argv.slice(2);
const held: Socket[] = [];
let failed: string | undefined;
const ends = targets.map((target) => {
  const [, address = '', port] = /^(.*):(\d+)$/.exec(target) ?? [];
  return { address, port: Number(port) };
});
let next = 0;
const work = async () => {
  while (next < Number(count) && failed === undefined) {
    const { address = '', port = 0 } = ends[next++ % ends.length] ?? {};
    try {
      held.push(await connectTransparent({ address, port, ...(localAddress && { localAddress }) }));
    } catch (error) {
      failed = String(error);
    }
  }
};
await Promise.all(Array.from({ length: 64 }, work));
const ports = new Set(held.map(({ localPort }) => localPort));
console.log(`ready ${held.length} connections, ${ports.size} ports, ${failed ?? 'no error'}`);
process.stdin.resume().on('end', () => process.exit());
