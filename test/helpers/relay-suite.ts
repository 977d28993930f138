/** A suite of tests of the native relay, each with a relay thread of its own; it fails instead of hanging, and what it opened is closed. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { suite } from 'uvu';
import type { Engine } from '../../src/types.js';
import { closeOpened, Relays, within } from './relays.js';

export interface Context {
  readonly relays: Relays;
  readonly engine: Engine;
}
export type Body = (context: Context) => Promise<void>;

/** An argument of the command line is a part of the names of the only tests to run. */
export function relaySuite(name: string) {
  const tests = suite(name);
  const testWith = (engine: Engine, what: string, body: Body) => {
    const title = `${engine}: ${what}`;
    if (process.argv[2] && !title.includes(process.argv[2])) return;
    tests(
      title,
      within(100_000, () => body({ relays: new Relays({ engine }), engine })),
    );
  };
  tests.after.each(async () => {
    closeOpened();
    await nextTurn(); // sockets are closed in it
  });
  return {
    testWith,
    /** What depends on who waits and reads is tested with both. */
    test(what: string, body: Body) {
      for (const engine of ['epoll', 'uring'] satisfies Engine[]) testWith(engine, what, body);
    },
    run: () => tests.run(),
  };
}
