/** Connections that are closed here, and whose last bytes the kernel is still sending. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { InstalledRules } from './intercept/installation.js';
import { addressBytes } from './intercept/ranges.js';
import { RouteSocket } from './netlink/route.js';
import { sockets } from './procfs.js';

/** TCP_FIN_WAIT1, TCP_LAST_ACK and TCP_CLOSING of include/net/tcp_states.h. */
const SENDING = ['04', '09', '0B'];
const LOOK_MS = 20;
/** Nobody takes anything any more. */
const STILL_MS = 5000;
/** As /proc/net/tcp6 writes ::ffff:0:0/96. */
const MAPPED = /^0{16}FFFF0000/i;

/** As /proc/net/tcp writes them: 32-bit words in host byte order. */
async function ownAddresses(netns: string | undefined): Promise<Set<string>> {
  const socket = new RouteSocket(netns === undefined ? {} : { netns });
  try {
    const hex = (word: number) => word.toString(16).toUpperCase().padStart(8, '0');
    const words = (address: string) => Array.from(new Uint32Array(addressBytes(address).buffer), hex);
    return new Set((await socket.addressList()).map(({ address }) => words(address).join('')));
  } finally {
    await socket.close();
  }
}

/**
 * To be waited for before those rules are taken down: the connections that are there now, as long as one of them gets on. The
 * answers to what is sent from a foreign address are brought here by the rules only: without them it would be sent in vain.
 * (Behind REDIRECT it is conntrack that brings them.) Does not fail: where they cannot be looked at any more (a namespace that
 * may not be entered without the privileges that were given up), there is nothing to wait for.
 */
export async function delivered(
  { plan }: InstalledRules,
  { netns, withinMs = Number.POSITIVE_INFINITY }: { netns?: string | undefined; withinMs?: number | undefined },
): Promise<void> {
  if (plan.lifetime !== 'process' || plan.mode === 'redirect') return;
  await settled(netns, performance.now() + withinMs).catch(() => {});
}

async function settled(netns: string | undefined, end: number): Promise<void> {
  const own = await ownAddresses(netns);
  const isForeign = (local: string) => !own.has((local.split(':')[0] as string).replace(MAPPED, ''));
  // By their ends, what of each is not acknowledged yet. What nobody has open has no inode.
  const look = () =>
    new Map(
      sockets('tcp', netns)
        .filter(({ state, inode, local }) => SENDING.includes(state) && inode === '0' && isForeign(local))
        .map(({ local, remote, queues }) => [`${local} ${remote}`, queues] as const),
    );
  let left = look();
  for (let still = 0; left.size > 0 && still < STILL_MS && performance.now() < end; still += LOOK_MS) {
    await sleep(LOOK_MS);
    const now = [...look()].filter(([ends]) => left.has(ends));
    if (now.length < left.size || now.some(([ends, queues]) => left.get(ends) !== queues)) still = 0;
    left = new Map(now);
  }
}
