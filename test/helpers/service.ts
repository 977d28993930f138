/**
 * A server as a service has it, with whatever privileges it is started.
 *   service.ts JSON     { server: TransparentServerOptions, listen: ListenOptions, from?: 'proxy', drop?: true, connect?: {}[] }
 * `from`: every relay goes on from there. `drop`: at 'listening' it becomes nobody. `connect`: what connectTransparent then
 * connects to, one after the other. SIGTERM closes it; SIGHUP closes it and listens again.
 */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connectTransparent, createTransparentServer, type RelayDecision } from '../../src/index.js';

const { server: options, listen, from, drop, connect = [] } = JSON.parse(process.argv[2] ?? '{}');
const relay = from ? (): RelayDecision => ({ kind: 'relay', from }) : true;
const server = createTransparentServer({ relay, ...options });
server.on('error', (error) => console.log(`error ${error.message}`));
server.on('close', () => console.log('closed'));
server.on('listening', async () => {
  if (drop) {
    process.setgroups?.([]);
    process.setgid?.(65534);
    process.setuid?.(65534);
  }
  const capabilities = /^CapEff:\s*(\w+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  console.log(`ready with capabilities ${Number(`0x${capabilities}`)}`);
  for (const each of connect) {
    try {
      const socket = await connectTransparent(each);
      const [greeting] = await once(socket, 'data');
      console.log(`heard ${String(greeting).trim()}`);
      socket.destroy();
    } catch (error) {
      console.log(`failed ${(error as Error).message}`);
    }
  }
  console.log('done');
});
server.listen(listen);
process.on('SIGTERM', () => server.close(() => process.exit(0)));
process.on('SIGHUP', () => server.close(() => server.listen(listen)));
