/** Waiting: as long as a crowded machine may need, since only what fails waits that long. */
import { setTimeout as sleep } from 'node:timers/promises';

/** Waits until `condition` holds. */
export async function until(
  condition: () => unknown,
  what: string | (() => string),
  timeoutMs = 30_000,
): Promise<void> {
  for (const end = Date.now() + timeoutMs; !(await condition()); await sleep(5))
    if (Date.now() > end) throw new Error(`not within ${timeoutMs} ms: ${typeof what === 'string' ? what : what()}`);
}

/** Waits until this gives the same for a while, and gives that. */
export async function settled<T>(value: () => T): Promise<T> {
  let last = value();
  for (let same = 0; same < 5; same++) {
    await sleep(80);
    const now = value();
    if (now !== last) same = -1;
    last = now;
  }
  return last;
}

/** The body of a test that fails instead of hanging. */
export const within =
  (ms: number, body: () => Promise<void>): (() => Promise<void>) =>
  async () => {
    let timer: NodeJS.Timeout | undefined;
    const over = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not over after ${ms} ms`)), ms);
    });
    await Promise.race([body(), over]).finally(() => clearTimeout(timer));
  };
