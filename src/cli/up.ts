/** `linux-tproxy up`: installs an interception that stays when the command has ended. */
import type { Plan } from '../intercept/plan.js';
import { interceptOptions, json, netns, netnsOf, toInterceptOptions } from './options.js';
import { installedData, print, routingRows, rows } from './output.js';
import type { Verb } from './verb.js';

export const up: Verb = {
  name: 'up',
  summary: 'intercept until `down`',
  options: [...interceptOptions, netns, json],
  description: [
    "Makes the kernel deliver matching connections to the proxy that listens on --to-port, whoever that is and whenever it starts, until `linux-tproxy down`. The proxy sees the original destination as its own end of the connection (getsockname) and may connect onwards from the client's address: the answers are delivered to it, too.",
    'Connections that are open already go on undisturbed. What is meant for this host itself is never intercepted, so its own services on the same ports stay reachable. SYN cookies, clients that use a tuple of TIME_WAIT again, and path MTU discovery work.',
    'Mark bits, routing table and priorities are chosen free after looking at what this host uses, and are printed. Packets are marked under a mask: bits of others are never touched. No sysctl needs to be changed, rp_filter and src_valid_mark included.',
  ],
  changes: [
    'One nf_tables table, inet linux-tproxy-NAME, made in one atomic batch; in each family three (with --own-host four) policy rules and one route (`proto 84`). If any step fails, what was done is undone. `linux-tproxy plan` prints the equal commands.',
    'With --backend iptables: chains linux-tproxy-NAME in the table mangle of each family, a rule at the end of PREROUTING and one at the beginning of OUTPUT that lead into them, and an empty nf_tables table of that name, which tells what belongs to it. Connections are remembered by two bits of the mark of conntrack.',
  ],
  examples: [
    [
      'Squid, with `http_port 50080 tproxy` in its configuration, gets the web of one network:',
      'linux-tproxy up --to-port 50080 --tcp 80 --from 10.0.0.0/8,fd00::/8',
    ],
    [
      'HAProxy, with `bind :50443 transparent`; without it nothing passes:',
      'linux-tproxy up --to-port 50443 --tcp 443,8443 --on-down closed',
    ],
    ['On a host that iptables manages:', 'linux-tproxy up --to-port 50080 --tcp 80 --backend iptables'],
    [
      "In a container's or `ip netns` namespace:",
      'linux-tproxy up --netns router --to-port 50080 --tcp all --exclude-to 192.0.2.0/24',
    ],
  ],
  seeAlso: ['linux-tproxy down', 'linux-tproxy status', 'linux-tproxy plan', 'nft(8)', 'ip-rule(8)'],

  async run(values) {
    // Loaded here, so that the help can be read where the native part cannot be.
    const { installIntercept } = await import('../intercept/install.js');
    const { plan } = await installIntercept({
      ...toInterceptOptions(values),
      ...netnsOf(values),
      lifetime: 'permanent',
      repair: false, // this process ends
    });
    print(values, installedData(plan), `${plan.name}: up\n${rows(routingRows(plan))}`);
    await warnOfBridges(plan, netnsOf(values).netns);
    return 0;
  },
};

/** Nobody stays to tell it later. */
async function warnOfBridges({ families, interfaces }: Plan, netns: string | undefined): Promise<void> {
  const { lossyBridges, lossyBridgesText } = await import('../intercept/bridges.js');
  const { RouteSocket } = await import('../netlink/route.js');
  const route = new RouteSocket(netns === undefined ? {} : { netns });
  const lossy = lossyBridges(await route.linkList(), { netns, families, interfaces });
  await route.close();
  if (lossy) console.error(`linux-tproxy up: warning: ${lossyBridgesText(lossy)}`);
}
