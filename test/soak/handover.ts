/**
 * Restarts under a stream of connections, and what became of each connection. Fails where one goes past the proxy or, in a
 * planned hand-over, breaks. Takes minutes.
 *   npm run soak:handover [-- RESTARTS]
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { createLab, type Lab, type Program } from '../helpers/lab.js';
import { type StreamOutcome, stream } from '../helpers/stream.js';
import { greet } from '../helpers/talk.js';

const restarts = Number(process.argv[2] ?? 100);
const script = new URL('../helpers/persist-server.ts', import.meta.url);
const start = (lab: Lab, intercept: object): Promise<Program> =>
  lab.node('router', script, JSON.stringify({ name: 'web', ...intercept }));

/** `restart` is given the server that runs, and gives the next one. */
async function soak(
  name: string,
  times: number,
  intercept: object,
  restart: (lab: Lab, running: Program) => Promise<Program>,
): Promise<StreamOutcome> {
  await using lab = await createLab();
  await greet(lab, 'server', 'server', 80);
  let server = await start(lab, intercept);
  const clients = stream(lab);
  for (let count = 0; count < times; count++) {
    await sleep(100);
    server = await restart(lab, server);
  }
  await sleep(100);
  const outcome = await clients.end();
  const broken = Object.entries(outcome.broken).map(([code, count]) => `${count} ${code}`);
  console.log(
    `${name.padEnd(46)} ${times} restarts  ${outcome.connections} connections  ${outcome.direct} direct  ${broken.join(', ') || '0'} broken  ${Object.keys(outcome.by).length} processes answered`,
  );
  return outcome;
}

const afterKill = (intercept: object) => async (lab: Lab, running: Program) => {
  await running.stop('SIGKILL');
  const next = await start(lab, intercept);
  await sleep(1500); // a SYN that was dropped is repeated after a second
  return next;
};
const closed = { onDown: 'closed' };
const mortal = { ...closed, lifetime: 'process' };
const planned = await soak('planned hand-over', restarts, {}, (lab) => start(lab, {}));
const killed = await soak('kill -9, persist, closed', restarts, closed, afterKill(closed));
const control = await soak(
  'kill -9, without persist, closed (control)',
  Math.min(5, restarts),
  mortal,
  afterKill(mortal),
);
const right = planned.direct === 0 && Object.keys(planned.broken).length === 0 && killed.direct === 0;
if (control.direct === 0) console.log('The control shows nothing: is the stream too slow?');
process.exit(right && control.direct > 0 ? 0 : 1); // greeted sockets may be open still
