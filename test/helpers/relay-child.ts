/**
 * A relay in a process, or a worker thread, of its own, for tests that end it, starve it or forbid it things. Arguments:
 * the port to relay to, the wanted engine, and optionally after how many milliseconds to exit with code 7. Tells the port it
 * listens on and the engine it has, then what it hears: one line each on stdout, or one message each to the parent thread.
 */
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import { chooseEngine } from '../../src/relay.js';
import type { Engine } from '../../src/types.js';
import { big, Relays } from './relays.js';

const [target, wanted, exitAfterMs] = isMainThread ? process.argv.slice(2) : (workerData as string[]);
const tell = (message: unknown) =>
  parentPort ? parentPort.postMessage(message) : process.stdout.write(`${JSON.stringify(message, big)}\n`);

const engine = chooseEngine(wanted as Engine);
const relays = new Relays({ engine });
const { port, counters } = relays.listen((flow) => {
  tell({ kind: 'flow', id: flow.id });
  return { kind: 'relay', engine, address: '127.0.0.1', port: Number(target) };
});
tell({ port, engine });
if (exitAfterMs) setTimeout(() => process.exit(7), Number(exitAfterMs));

let told = 0;
setInterval(() => {
  for (const event of relays.events.slice(told)) if (event.kind !== 'flow') tell({ ...event, counters: [...counters] });
  told = relays.events.length;
}, 10);
