/** What is tried of the kernel: which of its answers are none, which mean to try again, and what else is told of a failure. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type InstallStep, InterceptError, NetlinkError } from '../errors.js';

export async function ignoring(codes: readonly string[], attempt: Promise<void>): Promise<void> {
  await attempt.catch((error) => {
    if (!(error instanceof NetlinkError && [error, ...(error.errors ?? [])].every(({ code }) => codes.includes(code))))
      throw error;
  });
}

/** How often to begin anew when somebody else changed the host between our look at it and our change. */
const ATTEMPTS = 50;

/** A look and a change that belong together, again where somebody else came between them. */
export async function untilQuiet<T>(lookAndChange: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await lookAndChange();
    } catch (error) {
      if (attempt === ATTEMPTS || !isRace(error)) throw error;
      // Several who get into each other's way part by waiting unequally long.
      await sleep(Math.random() * Math.min(attempt, 20));
    }
  }
}

/** Somebody took what we had found free, or changed the rule set meanwhile: look again. */
const RACES = ['EEXIST', 'ERESTART', 'EINTR', 'ENOBUFS'];
/** Or took the table that we were about to take over, or changed it: then it is not as we had found it. */
const TAKEN = ['EPERM', 'ENOENT', 'EOPNOTSUPP', 'EBUSY'];

function isRace(error: unknown): boolean {
  const [cause, step] = error instanceof InterceptError ? [error.cause, error.step] : [error];
  if (!(cause instanceof NetlinkError)) return false;
  // A table that another process owns may not be made a second time: EPERM comes before EEXIST.
  const isOwned = step === 'table' && cause.code === 'EPERM';
  return RACES.includes(cause.code) || isOwned || (step === 'takeover' && TAKEN.includes(cause.code));
}

export function atStep(step: InstallStep, error: unknown): unknown {
  if (!(error instanceof NetlinkError)) return error;
  return new InterceptError(
    'ERR_TPROXY_INSTALL',
    `Installing the interception failed at step '${step}', and what had been done is undone: ${error.message}`,
    step,
    error,
  );
}
