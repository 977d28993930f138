/** A listener for one connection, on an address that is not ours. */
import { once } from 'node:events';
import { createTransparentServer } from 'linux-tproxy';
import { addressOf } from '../dialogue.mjs';

/**
 * Takes the first connection that comes from `from` to `address`, and resets what others try. No rule is needed for it: the
 * divert rule of the main server's `intercept` knows a listener on a foreign address by its socket. Nothing is read from
 * the connection (pauseOnConnect), so that all of it is the relay's.
 *
 * @param {{ address: string, port: number, from: string, timeoutMs: number }} place Port 0: one that is free.
 * @param {(socket: import('node:net').Socket) => void} onConnection
 * @returns {Promise<{ port: number, close(): void }>}
 */
export async function listenOnce({ address, port, from, timeoutMs }, onConnection) {
  const server = createTransparentServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    if (!server.listening || addressOf(socket) !== from) {
      socket.resetAndDestroy();
      return;
    }
    close();
    onConnection(socket);
  });
  const close = () => {
    clearTimeout(timer);
    if (server.listening) server.close();
  };
  const timer = setTimeout(close, timeoutMs);
  await once(server.listen(port, address), 'listening').catch((error) => {
    clearTimeout(timer);
    throw error;
  });
  return { port: server.address()?.port ?? port, close };
}
