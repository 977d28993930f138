/**
 * The netlink sockets of one interception, in its network namespace: opening, and closing when it suits the kernel.
 */
import { setTimeout as startTimer } from 'node:timers';
import { NftablesSocket } from '../netlink/nftables.js';
import { type Guard, RouteSocket } from '../netlink/route.js';
import { beginClearing } from './clearing.js';
import { namespaceOf } from './marks.js';

export interface Kernel {
  /** Path of its network namespace, where that is not the process's own. */
  readonly netns: string | undefined;
  /** Which one that is, as `namespaceOf` tells. */
  readonly namespace: string;
  readonly route: RouteSocket;
  /** Another one when a table that it owned has been let go of. */
  nftables: NftablesSocket;
  /** A process only while there is, or was a moment ago, something for it to do. */
  readonly guard: Guard;
  /** Is told when somebody has ended that process. */
  guarding: { guardEnded(): void } | undefined;
}

/**
 * Sockets that nobody uses, for a while: one to nf_tables that is closed right after a deletion keeps the rule set locked
 * until the kernel has cleared away what was deleted, some 10 to 20 ms. And to start a guard takes longer than all the rest.
 */
const idle = new Map<Kernel, NodeJS.Timeout>();
const IDLE_MS = 100;

export function openKernel(netns: string | undefined): Kernel {
  const namespace = namespaceOf(netns);
  for (const [kernel, timer] of idle)
    if (kernel.netns === netns && kernel.namespace === namespace) {
      clearTimeout(timer);
      idle.delete(kernel);
      return kernel;
    }
  const route = new RouteSocket(socketOptions(netns));
  try {
    const nftables = new NftablesSocket(socketOptions(netns));
    const guard = route.guard([], { lock: beginClearing, onEnd: () => kernel.guarding?.guardEnded() });
    const kernel: Kernel = { netns, namespace, route, nftables, guard, guarding: undefined };
    return kernel;
  } catch (error) {
    void route.close();
    throw error;
  }
}

/** Once nothing belongs to it any more. */
export function closeKernel(kernel: Kernel): void {
  const later = () => {
    idle.delete(kernel);
    void close(kernel);
  };
  idle.set(kernel, startTimer(later, IDLE_MS).unref());
}

/** At once. The kernel deletes the tables that belong to it. */
export async function close({ route, nftables, guard }: Kernel): Promise<void> {
  guard.end();
  await Promise.all([route.close(), nftables.close()]);
}

/** As if this process had ended: what is left the guard deletes. */
export async function abandon({ route, nftables, guard }: Kernel): Promise<void> {
  await Promise.all([route.close(), nftables.close()]);
  guard.release();
}

export const socketOptions = (netns: string | undefined) => ({ ...(netns !== undefined && { netns }) });
