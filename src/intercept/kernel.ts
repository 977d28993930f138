/**
 * The netlink sockets of one interception, in its network namespace: opening, and closing when it suits the kernel.
 */
import { setTimeout as startTimer } from 'node:timers';
import { NftablesSocket } from '../netlink/nftables.js';
import { RouteSocket } from '../netlink/route.js';
import { namespaceOf } from './marks.js';

export interface Kernel {
  /** Which network namespace it is of. */
  readonly namespace: string;
  /** Its path, where it is not the process's own. */
  readonly netns: string | undefined;
  readonly route: RouteSocket;
  /** Another one when a table that it owned has been let go of. */
  nftables: NftablesSocket;
}

/**
 * Sockets that nobody uses, for a while: one to nf_tables that is closed right after a deletion keeps the rule set locked
 * until the kernel has cleared away what was deleted, some 10 to 20 ms.
 */
const idle = new Map<Kernel, NodeJS.Timeout>();
const IDLE_MS = 100;

export function openKernel(netns: string | undefined): Kernel {
  const namespace = `${netns} ${namespaceOf(netns)}`;
  for (const [kernel, timer] of idle)
    if (kernel.namespace === namespace) {
      clearTimeout(timer);
      idle.delete(kernel);
      return kernel;
    }
  const route = new RouteSocket(socketOptions(netns));
  try {
    return { namespace, netns, route, nftables: new NftablesSocket(socketOptions(netns)) };
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
export const close = ({ route, nftables }: Kernel) => Promise.all([route.close(), nftables.close()]);

export const socketOptions = (netns: string | undefined) => ({ ...(netns !== undefined && { netns }) });
