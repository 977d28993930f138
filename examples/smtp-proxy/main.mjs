/**
 * A transparent SMTP proxy. Mail goes from servers to servers as it always did, and neither knows of it: `npm start -- --help`.
 */
import { setMaxListeners } from 'node:events';
import { parseArgs } from 'node:util';
import { connectTransparent, createTransparentServer } from 'linux-tproxy';
import { addressOf } from '../dialogue.mjs';
import { serve } from '../serve.mjs';
import { Session } from './session.mjs';

const help = `usage: npm start -- --port PORT [--interface IF]... [--deny RECIPIENT]... [--tls hide|require|pass]

  --port PORT       of this host, to which the connections come (by rules that live as long as the program)
  --interface IF    take only what comes in here; default everywhere
  --deny RECIPIENT  no mail to a@example.org, to anybody at example.org, or at *.example.org
  --tls require     no mail without STARTTLS; what is sent within is relayed unseen, whoever it is to
  --tls pass        STARTTLS is the client's choice, with the same effect
  --tls hide        no STARTTLS, so that no recipient can be hidden (default)
`;

const { values: options } = parseArgs({
  options: {
    port: { type: 'string' },
    interface: { type: 'string', multiple: true },
    deny: { type: 'string', multiple: true, default: [] },
    tls: { type: 'string', default: 'hide' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});
if (options.help || !options.port || !['hide', 'require', 'pass'].includes(options.tls ?? '')) {
  console.log(help);
  process.exit(options.help ? 0 : 2);
}
const policy = { deny: options.deny ?? [], tls: options.tls ?? 'hide' };

/** @type {Set<Session>} */
const sessions = new Set();
const ending = new AbortController();
setMaxListeners(0, ending.signal); // one for each connection that is being made
const proxy = createTransparentServer({
  intercept: { tcp: [25], ...(options.interface && { interfaces: options.interface }) },
  allowHalfOpen: true,
});

proxy.on('connection', async (client) => {
  client.on('error', () => {});
  const { address, port } = client.originalDestination;
  const log = (/** @type {string} */ text) => console.log(`${addressOf(client)} > ${address}: ${text}`);
  try {
    // At once, for the server speaks first.
    const from = { localAddress: addressOf(client), timeoutMs: 30_000, allowHalfOpen: true, signal: ending.signal };
    const session = new Session(client, await connectTransparent({ address, port, ...from }), { policy, log });
    sessions.add(session);
    await session.run().finally(() => sessions.delete(session));
    log('end');
  } catch (error) {
    log(String(error));
    client.resetAndDestroy();
  }
});
serve(proxy, options.port, () => {
  ending.abort(new Error('The proxy ends'));
  for (const session of sessions) session.close();
});
