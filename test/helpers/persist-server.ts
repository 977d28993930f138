/**
 * A server in this process's own namespace whose rules outlive it; greets with its process id, then echoes. Listens on any
 * free port, or PORT. Ends when it has handed over and its connections have ended, leaves at SIGTERM.
 *   persist-server.ts INTERCEPT [PORT]
 */
import { createTransparentServer } from '../../src/index.js';
import { greeting } from './talk.js';

const intercept = JSON.parse(process.argv[2] ?? '{}');
const server = createTransparentServer({ intercept: { lifetime: 'persist', tcp: [80], ...intercept } }, (socket) =>
  greeting(String(process.pid), socket),
);
server.on('handover', ({ processId }) => console.log(`handover to ${processId}`));
server.on('error', (error) => console.log(`error ${error.message}`));
server.on('close', () => console.log('closed'));
server.listen(Number(process.argv[3] ?? 0), () => console.log(`ready ${process.pid} ${server.address()?.port}`));
process.once('SIGTERM', () => server.close(() => process.exit()));
