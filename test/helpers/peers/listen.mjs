/** What the servers among the peers share: TCP on every port of the command line, both families, then `ready`. */
import { once } from 'node:events';
import { createServer } from 'node:net';

/**
 * @param {import('node:net').ServerOpts} options
 * @param {(socket: import('node:net').Socket) => void} serve
 */
export async function listen(options, serve) {
  for (const port of process.argv.slice(2)) {
    const server = createServer(options, (socket) => {
      // A peer that resets is a peer's right.
      socket.on('error', () => socket.destroy());
      serve(socket);
    });
    await once(server.listen(Number(port), '::'), 'listening');
  }
  console.log('ready');
}

/**
 * `remoteAddress remotePort localAddress localPort`, IPv4 as IPv4.
 * @param {import('node:net').Socket} socket
 */
export function whoIs({ remoteAddress = '', remotePort, localAddress = '', localPort }) {
  return `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`.replaceAll('::ffff:', '');
}
