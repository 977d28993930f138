/**
 * TCP server, both families, of streams to measure and to compare; see transfer.mjs for the client. `stream.mjs PORT...`
 * The first line of a connection says what is wanted:
 *   get N   sends N bytes of bytes.mjs and ends
 *   put     reads to the end, then answers `BYTES SHA256`
 */
import { createHash } from 'node:crypto';
import { pipeline, Readable } from 'node:stream';
import { bytes } from './bytes.mjs';
import { listen } from './listen.mjs';

await listen({ allowHalfOpen: true }, (socket) => {
  socket.once('readable', () => {
    const [line = ''] = String(socket.read(socket.readableLength)).split('\n', 1);
    if (line.startsWith('get ')) {
      socket.resume();
      pipeline(Readable.from(bytes(Number(line.slice(4)))), socket, () => {});
    } else {
      let length = 0;
      const hash = createHash('sha256');
      socket.on('data', (chunk) => {
        length += chunk.length;
        hash.update(chunk);
      });
      socket.on('end', () => socket.end(`${length} ${hash.digest('hex')}\n`));
      socket.write('go\n');
    }
  });
});
