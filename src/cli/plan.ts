/** `linux-tproxy plan`: prints what `up` would do, as commands. */
import { planIntercept } from '../intercept/plan.js';
import { interceptOptions, json, netns, netnsOf, toInterceptOptions } from './options.js';
import { print } from './output.js';
import type { Verb } from './verb.js';

export const plan: Verb = {
  name: 'plan',
  summary: 'print the equal ip, nft and iptables commands, change nothing',
  options: [...interceptOptions, netns, json],
  description: [
    'Prints a shell script of `ip` and `nft` (with --backend iptables also `iptables-nft-restore` and `ip6tables-nft-restore`) commands that does what `linux-tproxy up` with the same options does. It is for reading, and for hosts where only those commands are at hand.',
    'Nothing is asked of the host either: mark, routing table and priorities are those that `up` takes where they are free, and may be other ones on a host that uses them. With --mark, --table and --priority they are fixed.',
    'With --json: the same in `script`, and the policy rules and routes as `linux-tproxy/netlink` takes them.',
  ],
  changes: ['Nothing. No privileges are needed.'],
  examples: [
    ['What would be done:', 'linux-tproxy plan --to-port 50080 --tcp 80,443'],
    ['To do it without linux-tproxy:', 'linux-tproxy plan --to-port 50080 --tcp 80,443 | sudo sh -eu'],
  ],
  seeAlso: ['linux-tproxy up', 'nft(8)', 'iptables(8)', 'ip-rule(8)', 'ip-route(8)'],

  async run(values) {
    const planned = planIntercept({ ...toInterceptOptions(values), lifetime: 'permanent' });
    const { name, backend, nftTable, families, port, fwmark, table, priority, rules, routes } = planned;
    const path = netnsOf(values).netns;
    const script = path === undefined ? String(planned) : within(path, String(planned));
    print(values, { name, backend, nftTable, families, port, fwmark, table, priority, rules, routes, script }, script);
    return 0;
  },
};

function within(path: string, script: string): string {
  return `nsenter --net='${path.replaceAll("'", "'\\''")}' -- sh -eu <<'END'\n${script}END\n`;
}
