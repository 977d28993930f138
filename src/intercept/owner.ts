/** Whose a netlink socket is, and so a table that it owns. Reads /proc. */
import { readFileSync } from 'node:fs';
import type { ChangedBy } from '../types.js';

/** A process that owns a table. */
export interface Owner {
  /** Of its socket. */
  readonly netlinkPort: number;
  /** As seen by itself, should it be in a container. Missing where its port was made up by the kernel. */
  readonly processId?: number;
  /** Missing where there is no process of that id (in this pid namespace). */
  readonly command?: string;
}

/** The largest process id there can be is below (PID_MAX_LIMIT). */
const PROCESS_IDS = 2 ** 22;

/**
 * A process's first socket has its id for a port; this package's further ones have a number in the bits above (as libnl's
 * have), those of others a port that the kernel makes up, from 2 ** 31 on.
 */
export function processIdOf(netlinkPort: number): number | undefined {
  return netlinkPort < 2 ** 31 ? netlinkPort % PROCESS_IDS || undefined : undefined;
}

export function ownerOf(netlinkPort: number): Owner {
  const processId = processIdOf(netlinkPort);
  if (processId === undefined) return { netlinkPort };
  try {
    return { netlinkPort, processId, command: readFileSync(`/proc/${processId}/comm`, 'utf8').trim() };
  } catch {
    return { netlinkPort, processId };
  }
}

/** `process 4711 (node)`. */
export function ownerText({ netlinkPort, processId, command }: Owner): string {
  if (processId === undefined) return `a process (netlink port ${netlinkPort})`;
  return command === undefined ? `process ${processId}` : `process ${processId} (${command})`;
}

/** `ip (4711), nft (4712)`; nothing where nobody is known. */
export const changedByText = (by: readonly ChangedBy[]): string =>
  by.map(({ processName = 'process', processId }) => `${processName} (${processId})`).join(', ');
