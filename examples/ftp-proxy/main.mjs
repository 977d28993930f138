/**
 * A transparent FTP proxy. Clients connect to servers as they always did, and neither knows of it: `npm start -- --help`.
 */
import { setMaxListeners } from 'node:events';
import { parseArgs } from 'node:util';
import { connectTransparent, createTransparentServer } from 'linux-tproxy';
import { addressOf } from '../dialogue.mjs';
import { serve } from '../serve.mjs';
import { Session } from './session.mjs';

const help = `usage: npm start -- --port PORT [--interface IF]... [--data-timeout S] [--tls refuse|pass]

  --port PORT      of this host, to which the connections come (by rules that live as long as the program)
  --interface IF   take only what comes in here; default everywhere
  --data-timeout S how long a data connection may take to come; default 60 seconds
  --tls pass       let AUTH TLS through: the session is then relayed unseen, and its data connections go through this
                   host's forwarding. Default: refuse
`;

const { values: options } = parseArgs({
  options: {
    port: { type: 'string' },
    interface: { type: 'string', multiple: true },
    'data-timeout': { type: 'string', default: '60' },
    tls: { type: 'string', default: 'refuse' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});
if (options.help || !options.port) {
  console.log(help);
  process.exit(options.help ? 0 : 2);
}

/** @type {Set<Session>} */
const sessions = new Set();
const ending = new AbortController();
setMaxListeners(0, ending.signal); // one for each connection that is being made
const proxy = createTransparentServer({
  intercept: { tcp: [21], ...(options.interface && { interfaces: options.interface }) },
  allowHalfOpen: true,
  keepAlive: true, // the idle sessions of clients that vanished end some day
});

proxy.on('connection', async (client) => {
  client.on('error', () => {}); // whoever reads is told
  const { address, port } = client.originalDestination;
  try {
    const from = { localAddress: addressOf(client), timeoutMs: 30_000, allowHalfOpen: true, signal: ending.signal };
    const server = await connectTransparent({ address, port, ...from });
    server.setKeepAlive(true);
    const session = new Session(client, server, {
      passTls: options.tls === 'pass',
      dataTimeoutMs: Number(options['data-timeout']) * 1000,
      log: console.log,
    });
    sessions.add(session);
    await session.run().finally(() => sessions.delete(session));
  } catch (error) {
    console.log(`${addressOf(client)} > ${address}: ${error}`);
    client.resetAndDestroy();
  }
});
serve(proxy, options.port, () => {
  ending.abort(new Error('The proxy ends'));
  for (const session of sessions) session.close();
});
