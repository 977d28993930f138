/**
 * A relay in a process, or a worker thread, of its own, for tests that end it, starve it or forbid it things. Arguments:
 * the port to relay to, and the wanted engine. Tells the port it listens on and the engine it has, then what it hears: one line
 * each on stdout, or one message each to the parent thread. A process exits with code 7 at the first byte on stdin.
 */
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import { chooseEngine } from '../../src/relay.js';
import type { Engine } from '../../src/types.js';
import { big, Relays } from './relays.js';

const [target, wanted] = isMainThread ? process.argv.slice(2) : (workerData as string[]);
const tell = (message: unknown) =>
  parentPort ? parentPort.postMessage(message) : process.stdout.write(`${JSON.stringify(message, big)}\n`);

const engine = chooseEngine(wanted as Engine);
const relays = new Relays({ engine });
const { port, counters } = relays.listen((flow) => {
  tell({ kind: 'flow', id: flow.id });
  return { kind: 'relay', engine, address: '127.0.0.1', port: Number(target) };
});
tell({ port, engine });
if (isMainThread) process.stdin.once('data', () => process.exit(7));

let told = 0;
setInterval(() => {
  for (const event of relays.events.slice(told)) if (event.kind !== 'flow') tell({ ...event, counters: [...counters] });
  told = relays.events.length;
}, 10);
