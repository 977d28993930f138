/** A stream of connections from the lab's client to its server, and what became of each: whoever answered, or how it broke. */
import { setTimeout as sleep } from 'node:timers/promises';
import { addresses, type Lab } from './lab.js';
import { type Dialled, dial } from './talk.js';

export interface StreamOutcome {
  readonly connections: number;
  /** Answered by the real server: nobody intercepted it. */
  readonly direct: number;
  /** Refused, reset, ended before its time, or silent. By the error's code. */
  readonly broken: Readonly<Record<string, number>>;
  /** How many were answered by each proxy. */
  readonly by: Readonly<Record<string, number>>;
}

export interface Stream {
  /** Who has answered so far. */
  answered(): readonly string[];
  /** No more new ones; waits for those that are open. */
  end(): Promise<StreamOutcome>;
}

/**
 * So many at a time, one after the other. Each is greeted and echoes two lines, `holdMs` between them: the second one comes
 * when whoever answered the first may be on its way out. The server behind must greet with `server`.
 */
export function stream(lab: Lab, { atATime = 8, holdMs = 100, timeoutMs = 20_000 } = {}): Stream {
  const by: Record<string, number> = {};
  const broken: Record<string, number> = {};
  const count = (counts: Record<string, number>, key: string) => {
    counts[key] = (counts[key] ?? 0) + 1;
  };
  const going = { on: true };
  let connections = 0;
  const lane = async (family: 'ipv4' | 'ipv6') => {
    while (going.on) {
      connections++;
      let call: Dialled | undefined;
      try {
        call = await dial(lab, 'client', addresses.server[family], 80, { timeoutMs });
        await call.echo('one');
        await sleep(Math.random() * holdMs);
        await call.echo('two');
        count(by, call.who);
      } catch (error) {
        count(broken, (error as NodeJS.ErrnoException).code ?? String(error));
      }
      await call?.hangUp();
    }
  };
  const lanes = Promise.all(Array.from({ length: atATime }, (_, index) => lane(index % 2 ? 'ipv6' : 'ipv4')));
  return {
    answered: () => Object.keys(by),
    async end() {
      going.on = false;
      await lanes;
      const { server: direct = 0, ...proxies } = by;
      return { connections, direct, broken, by: proxies };
    },
  };
}
