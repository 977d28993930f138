/** Connections that are closed here, and whose last bytes the kernel is still sending. */
import { setTimeout as sleep } from 'node:timers/promises';
import { native } from './native.js';

/** TCP_FIN_WAIT1, TCP_LAST_ACK and TCP_CLOSING of include/net/tcp_states.h. */
const SENDING = ['04', '09', '0B'];
const LOOK_MS = 20;
/** Nobody takes anything any more. */
const STILL_MS = 5000;

/** Their ends, and how much of each is not acknowledged. The columns are those of proc_pid_net(5); nobody has inode 0 open. */
function closing(netns: string | undefined): Map<string, string> {
  const left = new Map<string, string>();
  for (const text of native.readFiles(['/proc/thread-self/net/tcp', '/proc/thread-self/net/tcp6'], netns))
    for (const line of text?.split('\n') ?? []) {
      const [, local, remote, state = '', queued = '', , , , , inode] = line.trim().split(/\s+/);
      if (SENDING.includes(state) && inode === '0') left.set(`${local} ${remote}`, queued);
    }
  return left;
}

/**
 * Waits for those that there are now, as long as any of them gets on. The answers to what is sent from a foreign address are
 * brought here by the rules only: without them it would be sent in vain, and the last bytes lost.
 */
export async function delivered(netns: string | undefined): Promise<void> {
  let left = closing(netns);
  for (let still = 0; left.size > 0 && still < STILL_MS; still += LOOK_MS) {
    await sleep(LOOK_MS);
    const now = closing(netns);
    const next = new Map([...left.keys()].flatMap((ends) => (now.has(ends) ? [[ends, now.get(ends) ?? '']] : [])));
    if ([...left].some(([ends, queued]) => next.get(ends) !== queued)) still = 0;
    left = next;
  }
}
