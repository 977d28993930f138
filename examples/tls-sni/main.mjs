/**
 * Lets TLS connections through by the name that the client asks for, without decrypting anything: `npm start -- --help`.
 */
import { parseArgs } from 'node:util';
import { createTransparentServer } from 'linux-tproxy';
import { serve } from '../serve.mjs';
import { LARGEST_HELLO, readClientHello } from './hello.mjs';

const help = `usage: npm start -- --port PORT [--interface IF]... [--allow NAME]... [--deny NAME]... [--nameless deny]

  --port PORT      of this host, to which the connections come (by rules that live as long as the program)
  --interface IF   take only what comes in here; default everywhere
  --allow NAME     let only these through: example.org, or *.example.org for all below it
  --deny NAME      but not these
  --nameless deny  nor those that name nobody. Default: they may, unless there are allowed names
`;
const HELLO_MS = 5000;
/** For what is open when we are told to end. */
const GRACE_MS = 10_000;

const { values: options } = parseArgs({
  options: {
    port: { type: 'string' },
    interface: { type: 'string', multiple: true },
    allow: { type: 'string', multiple: true, default: [] },
    deny: { type: 'string', multiple: true, default: [] },
    nameless: { type: 'string' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});
if (options.help || !options.port) {
  console.log(help);
  process.exit(options.help ? 0 : 2);
}
const { allow = [], deny = [], nameless = allow.length > 0 ? 'deny' : 'allow' } = options;

/** The alert "access denied", fatal, in a record of TLS 1.2: clients then say so, instead of guessing at a broken line. */
const ACCESS_DENIED = Buffer.from([21, 3, 3, 0, 2, 2, 49]);

const proxy = createTransparentServer({
  intercept: { tcp: [443], ...(options.interface && { interfaces: options.interface }) },
  async relay(flow) {
    const { verdict, why } = await judge(flow);
    console.log(`${flow.source.address} > ${flow.originalDestination.address}: ${why}: ${verdict}`);
    if (verdict === 'allowed') return { kind: 'relay' };
    return { kind: verdict === 'denied' ? 'socket' : 'reset' };
  },
});

// Only those come here that are denied.
proxy.on('connection', (socket) => {
  socket.on('error', () => {}).setTimeout(HELLO_MS, () => socket.destroy());
  socket.resume().end(ACCESS_DENIED); // what was not read would turn the end into a reset, which overtakes the alert
});
serve(proxy, options.port, () => {
  setTimeout(() => process.exit(), GRACE_MS).unref(); // or with the process
});

/**
 * Looks at the first bytes until they say the name. They stay where they are: the relay sends them on as they came.
 *
 * @param {import('linux-tproxy').Flow} flow
 * @returns {Promise<{ verdict: 'allowed' | 'denied' | 'reset', why: string }>}
 */
async function judge(flow) {
  const deadline = performance.now() + HELLO_MS;
  try {
    for (let hello = readClientHello(Buffer.alloc(0)); ; ) {
      if (hello.need === undefined) return judgeName(hello.serverName);
      if (hello.need > 2 * LARGEST_HELLO) throw new Error('too large');
      const bytes = await flow.peek(hello.need, Math.max(0, deadline - performance.now()));
      if (bytes.length < hello.need) throw new Error('an unfinished ClientHello');
      hello = readClientHello(bytes);
    }
  } catch (error) {
    return { verdict: 'reset', why: /** @type {Error} */ (error).message };
  }
}

/**
 * @param {string | undefined} name
 * @returns {{ verdict: 'allowed' | 'denied', why: string }}
 */
function judgeName(name) {
  const isAllowed =
    name === undefined ? nameless !== 'deny' : (allow.length === 0 || isListed(name, allow)) && !isListed(name, deny);
  return { verdict: isAllowed ? 'allowed' : 'denied', why: name === undefined ? 'no name' : JSON.stringify(name) };
}

/** @type {(name: string, list: readonly string[]) => boolean} */
function isListed(name, list) {
  const plain = name.replace(/\.$/, '');
  return list.some((each) =>
    each.startsWith('*.') ? plain.endsWith(each.slice(1).toLowerCase()) : plain === each.toLowerCase(),
  );
}
