/** A relay in a process of its own, to be measured. `proxy.ts ENGINE NETNS PORT TCP_PORT...`: tells `ready`, ends by SIGTERM. */
import { once } from 'node:events';
import { createTransparentServer } from '../src/index.js';
import type { Engine } from '../src/types.js';

const [engine, netns, port, ...tcp] = process.argv.slice(2) as [Engine, string, string, ...string[]];
const server = createTransparentServer({ intercept: { tcp: tcp.map(Number) }, relay: true, engine, netns });
await once(server.listen(Number(port)), 'listening');
console.log('ready');
process.on('SIGTERM', () => {
  const { spliced, copied, connections, connectErrors } = server.stats();
  console.log(JSON.stringify({ spliced: `${spliced}`, copied: `${copied}`, total: connections.total, connectErrors }));
  process.exit(0);
});
