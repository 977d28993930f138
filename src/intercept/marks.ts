/**
 * The marks of the interceptions that this process has installed, by network namespace. What it connects itself carries them:
 * without, its rules would take it for traffic to intercept.
 */
import { statSync } from 'node:fs';

const marks = new Map<string, Set<{ readonly mark: number }>>();

/** Until the function it gives is called. `key`: what `namespaceOf` gives. */
export function announceMark(key: string, mark: number): () => void {
  if (mark === 0) return () => {}; // nothing is marked
  const entry = { mark };
  marks.set(key, (marks.get(key) ?? new Set()).add(entry));
  return () => {
    const entries = marks.get(key);
    entries?.delete(entry);
    if (entries?.size === 0) marks.delete(key);
  };
}

/** All of them at once: no two have a bit in common. Nothing where there are none. */
export function ownMark(netns: string | undefined): number | undefined {
  if (marks.size === 0) return undefined;
  const entries = marks.get(namespaceOf(netns));
  return entries && [...entries].reduce((bits, { mark }) => bits | mark, 0) >>> 0;
}

/** A namespace has many paths and one inode; the process's own has no path, and stays what it is. */
export const namespaceOf = (netns?: string): string => (netns === undefined ? own : inodeOf(netns));
const own = inodeOf('/proc/self/ns/net');

function inodeOf(netns: string): string {
  const status = statSync(netns, { throwIfNoEntry: false });
  return status ? `${status.dev}:${status.ino}` : netns; // a missing one is told by whoever opens it
}
