import type { NetlinkError } from '../../src/errors.js';

/** The error by which it is refused; it must be. */
export async function refusal<E extends Error = NetlinkError>(promise: Promise<unknown>): Promise<E> {
  try {
    await promise;
  } catch (error) {
    return error as E;
  }
  throw new Error('was not refused');
}
