/** The service of tproxy-proxy.service: logs who wanted whom, and relays it. It has no capability. */
import { createTransparentServer } from 'linux-tproxy';

/** @param {import('linux-tproxy').Endpoint} endpoint */
const show = ({ address, port }) => (address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`);

const server = createTransparentServer({ relay: () => ({ kind: 'relay', from: 'proxy' }) })
  .on('relay', async (relay, { source, originalDestination }) => {
    const { reason, bytesFromServer } = await relay.closed;
    console.log(`${show(source)} to ${show(originalDestination)}: ${bytesFromServer} bytes, ${reason}`);
  })
  .on('error', (error) => {
    console.error(error.message);
    process.exitCode = 1;
  })
  .listen({ systemd: 'proxy' }, () => console.log('ready'));

// Connections that are open end first; new ones wait in systemd's socket for the next process.
process.once('SIGTERM', () => server.close());
