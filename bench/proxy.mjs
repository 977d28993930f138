// @ts-nocheck: it is not compiled
/**
 * A relay in a process of its own, to be measured. `proxy.mjs INDEX KIND NETNS PORT
 * TCP_PORT...`, INDEX being the package, compiled (what would compile it here would be measured, too), KIND being an engine, or how it is
 * made: `decide` (a function decides), `listener` (connectTransparent and relay() in a listener), `pipe` (Node alone:
 * net.connect from its own address, a.pipe(b)). Tells `ready`; at SIGUSR2 collects garbage and tells what it holds; ends by SIGTERM.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

const [index, kind, netns, port, ...tcp] = process.argv.slice(2);
const { connectTransparent, createTransparentServer, relay } = await import(index);

const ways = {
  decide: { relay: () => ({ kind: 'relay' }), engine: 'auto' },
  listener: { pauseOnConnect: true },
  pipe: { allowHalfOpen: true, noDelay: true },
};
const options = ways[kind] ?? { relay: true, engine: kind };
const server = createTransparentServer({ intercept: { tcp: tcp.map(Number) }, netns, ...options });
const mark = () => server.rules?.plan.socketMark;

if (kind === 'listener')
  server.on('connection', async (client) => {
    const { address, port } = client.originalDestination;
    const localAddress = client.remoteAddress.replace('::ffff:', '');
    relay(client, await connectTransparent({ address, port, localAddress, netns, mark: mark() }), { engine: 'auto' });
  });
if (kind === 'pipe')
  server.on('connection', (client) => {
    const { address, port } = client.originalDestination;
    const upstream = connect({ host: address, port, allowHalfOpen: true, noDelay: true });
    for (const socket of [client, upstream])
      socket.on('error', () => {
        client.destroy();
        upstream.destroy();
      });
    client.pipe(upstream).pipe(client);
  });

await once(server.listen(Number(port)), 'listening');
console.log(`ready ${kind in ways ? 'auto' : server.stats().engine}`);
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc');
process.on('SIGUSR2', () => {
  for (let i = 0; i < 3; i++) collectGarbage();
  console.log(JSON.stringify({ resident: process.memoryUsage.rss(), pipes: server.stats().pipes }));
});
process.on('SIGTERM', () => {
  const { spliced, copied, connections, connectErrors } = server.stats();
  console.log(JSON.stringify({ spliced: `${spliced}`, copied: `${copied}`, total: connections.total, connectErrors }));
  process.exit(0);
});
