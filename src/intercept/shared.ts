/**
 * The divert part alone is the same for every listener on a foreign address: in a process it is installed once for all that
 * ask for it, and stays until the last of them goes. So listeners come and go without a change of any rule.
 */
import { threadId } from 'node:worker_threads';
import { type InstallOptions, installIntercept } from './install.js';
import { type InstalledRules, leave } from './installation.js';
import { namespaceOf } from './marks.js';

interface Shared {
  readonly rules: Promise<InstalledRules>;
  users: number;
}

const installed = new Map<string, Shared>();
const ending = new Map<string, Promise<void>>();

/** Iptables' chains have short names, where the numbers must be short, too. */
export function sharedName(backend: InstallOptions['backend'], pid: number, thread: number): string {
  const [prefix, base] = backend === 'iptables' ? (['d', 36] as const) : (['divert-', 10] as const);
  return `${prefix}${pid.toString(base)}${thread === 0 ? '' : `-${thread.toString(base)}`}`;
}

export interface SharedRules {
  readonly rules: InstalledRules;
  /** Takes them down with the last one. */
  release(): Promise<void>;
}

/** Only of those who install in the same namespace with the same options it is one. */
export async function shareDivert({ address: _, port, netns, ...options }: InstallOptions): Promise<SharedRules> {
  const key = `${namespaceOf(netns)} ${JSON.stringify(options)}`;
  await ending.get(key);
  const shared = installed.get(key) ?? {
    users: 0,
    rules: installIntercept({
      name: sharedName(options.backend, process.pid, threadId),
      ...options,
      port,
      ...(netns !== undefined && { netns }),
    }),
  };
  installed.set(key, shared);
  shared.users++;
  const release = async () => {
    if (--shared.users > 0) return;
    installed.delete(key);
    const end = shared.rules.then(leave);
    ending.set(
      key,
      end.catch(() => {}),
    );
    await end.finally(() => ending.delete(key));
  };
  try {
    return { rules: await shared.rules, release };
  } catch (error) {
    await release().catch(() => {});
    throw error;
  }
}
