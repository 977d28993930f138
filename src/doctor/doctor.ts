/** Why it would not work here, with the command that mends it: asks each group of checks. One file for each. */
import { checkOptions } from '../errors.js';
import { untilQuiet } from '../intercept/attempt.js';
import { lookAtHost } from '../intercept/host.js';
import { listInstalled } from '../intercept/installed.js';
import { closeKernel, type Kernel, openKernel } from '../intercept/kernel.js';
import { planIntercept } from '../intercept/plan.js';
import type { Finding } from '../types.js';
import { firewall } from './firewall.js';
import { interceptions } from './interceptions.js';
import { kernelFindings } from './kernel.js';
import type { Look } from './look.js';
import { privileges } from './privileges.js';
import { relayFindings } from './relay.js';
import { routing } from './routing.js';

export interface DoctorOptions {
  /** Path of the network namespace to look at. */
  readonly netns?: string;
}

/**
 * Looks at this process's privileges, the kernel, the routing, other people's firewall rules, what is installed, and what
 * a relay may use. Changes nothing. What severity `fail` has keeps interception from working.
 * Equivalent to: reading `nft list ruleset`, `ip rule`, `ip link`, `sysctl -a` and `nft --check`ing a rule set.
 */
export async function doctor(options: DoctorOptions = {}): Promise<Finding[]> {
  checkOptions('doctor', options, ['netns']);
  const { netns } = options;
  const kernel = openKernel(netns);
  try {
    const may = await privileges(kernel, netns);
    const isAdmin = may.every(({ id, severity }) => id !== 'net-admin' || severity === 'ok');
    return [...may, ...(isAdmin ? await rulesAndRoutes(kernel, netns) : []), ...relayFindings()];
  } finally {
    closeKernel(kernel);
  }
}

async function rulesAndRoutes(kernel: Kernel, netns: string | undefined): Promise<Finding[]> {
  const look = await untilQuiet(() => lookAt(kernel, netns));
  return [...(await kernelFindings(kernel)), ...routing(look), ...firewall(look), ...interceptions(look)];
}

async function lookAt(kernel: Kernel, netns: string | undefined): Promise<Look> {
  const { installed, leftovers } = await listInstalled(netns === undefined ? {} : { netns });
  const {
    links,
    rules,
    routing: { routes },
  } = await lookAtHost(kernel);
  const marks = installed.map(({ fwmark }) => fwmark).filter(({ mask }) => mask !== 0);
  return {
    netns,
    links,
    rules,
    routes,
    installed,
    leftovers,
    chains: await kernel.nftables.list('chain'),
    nftRules: await kernel.nftables.list('rule'),
    marks: marks.length > 0 ? marks : [planIntercept({ port: 1 }).fwmark],
  };
}
