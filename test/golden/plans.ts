/** The plans whose bytes are compared with nft's: what an interception can be, in a few that together use everything. */
import { type PlanOptions, planIntercept } from '../../src/intercept/plan.js';
import { iptablesText, nftText } from '../../src/intercept/text.js';

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

const forIptables: Record<string, Omit<PlanOptions, 'port'>> = {
  'iptables-divert': {},
  'iptables-ports': { tcp: [80, 443] },
  'iptables-everything': {
    tcp: [80, '8000-8999', ...Array.from({ length: 20 }, (_, index) => 9000 + 2 * index), '60000-65535'],
    udp: [53],
    from: ['10.0.0.0/8', 'fd00::/8'],
    to: ['192.0.2.0/24', '198.51.100.7', '198.51.100.128/27', '0.0.0.0/1', '2001:db8::/29'],
    exclude: { from: ['10.1.2.3', '0.0.0.0/0'], to: ['192.0.2.128/25', '2001:db8:1::/48', 'fe80::/10', 'ff00::/8'] },
    interfaces: ['cli0', 'wlan-guests'],
    ownHost: { users: ['root', 65534] },
    ids: { users: { root: 0 }, cgroups: {} },
    fwmark: { value: 0x40000000, mask: 0xc0000000 },
    name: 'all',
  },
  'iptables-own-host': { tcp: true, udp: true, ownHost: true },
  'iptables-one-address': { udp: [53, '9000-9999'], address: '::1' },
};

export const iptablesPlans = Object.entries(forIptables).map(([name, each]) => ({
  name,
  plan: planIntercept({ ...each, port: 50080, lifetime: 'permanent', backend: 'iptables' }),
}));

/** What `iptables-nft-restore --noflush` reads, for each family; the fixtures have the same names. */
export const iptablesTexts = iptablesPlans.flatMap(({ name, plan }) =>
  plan.families.map((family) => ({
    name: `${name}-${family}`,
    plan,
    family: family === 'ipv4' ? ('ip' as const) : ('ip6' as const),
    command: `${family === 'ipv4' ? 'iptables' : 'ip6tables'}-nft-restore --noflush test/golden/iptables/${name}-${family}.txt`,
    text: `${iptablesText(plan, family)}\n`,
  })),
);

/** What `nft -f test/golden/nft/<name>.nft` reads. */
export const texts = plans.map(({ name, plan }) => ({ name, text: `${nftText(plan)}\n` }));
