/** The plans whose bytes are compared with nft's: what an interception can be, in a few that together use everything. */
import { type PlanOptions, planIntercept } from '../../src/intercept/plan.js';
import { nftText } from '../../src/intercept/text.js';

const options: Record<string, Omit<PlanOptions, 'port'>> = {
  'plan-divert': {},
  'plan-ports': { tcp: [80, 443] },
  'plan-everything': {
    tcp: [80, '8000-8999', '60000-65535'],
    from: ['10.0.0.0/8', 'fd00::/8'],
    to: ['192.0.2.0/24', '198.51.100.7', '2001:db8::/32'],
    exclude: { from: ['10.1.2.3', '0.0.0.0/8'], to: ['192.0.2.128/25', '255.0.0.0/8', '2001:db8:1::/48', 'ff00::/8'] },
    interfaces: ['cli0', 'wlan-guests'],
    onDown: 'closed',
    fwmark: { value: 0x10000, mask: 0x30000 },
    name: 'everything',
  },
  'plan-udp': { udp: [53, '9000-9999'], onDown: 'closed' },
  'plan-own-host': {
    tcp: true,
    udp: true,
    ownHost: { users: ['root', 65534] },
    onDown: 'closed',
    ids: { users: { root: 0 }, cgroups: {} },
  },
  'plan-own-host-one-family': {
    udp: [53],
    ownHost: { users: [1000] },
    families: ['ipv6'],
    exclude: { from: ['fd00::/8'] },
  },
  'plan-redirect': { tcp: [80], exclude: { to: ['192.0.2.0/24'] }, mode: 'redirect', families: ['ipv4'] },
  'plan-zone': { tcp: [80], interfaces: ['cli0'], zone: 84 },
  'plan-divert-zone': { zone: 4242, families: ['ipv6'] },
  'plan-one-address': { tcp: [80], address: '::1' },
};

// Permanent: `nft` has no socket that could own a table for longer than the command runs.
export const plans = Object.entries(options).map(([name, each]) => ({
  name,
  plan: planIntercept({ ...each, port: 50080, lifetime: 'permanent' }),
}));

/** What `nft -f test/golden/nft/<name>.nft` reads. */
export const texts = plans.map(({ name, plan }) => ({ name, text: `${nftText(plan)}\n` }));
