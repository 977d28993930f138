/**
 * The doctor: each illness is given to the host (with packets to show for it, where it stops them), found, and mended by the
 * very command that the finding names.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { doctor, installIntercept } from '../../src/index.js';
import type { Finding } from '../../src/types.js';
import { cli, command, outcome, succeed } from '../helpers/cli.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { startProxy, stop, stopAll } from '../helpers/proxies.js';
import { ask } from '../helpers/talk.js';

const test = suite('doctor');
let lab: Lab;
let netns: string;
let before: string;
const sh = (script: string) => lab.exec('router', 'sh', '-euc', script);
/** What is wrong with `id`; nothing is undefined. */
const wrong = async (id: string): Promise<Finding[]> =>
  (await doctor({ netns })).filter((each) => each.id === id && each.severity !== 'ok');

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  before = lab.snapshot('router');
});
test.after(() => lab.dispose());
test.after.each(async () => {
  await stopAll();
  assert.is(lab.snapshot('router'), before);
});

test('a healthy host: nothing is wrong, each thing once, and nothing is changed', async () => {
  const findings = await doctor({ netns });
  assert.equal(
    findings.filter(({ severity }) => severity !== 'ok'),
    [],
  );
  const ids = [
    'net-admin',
    'transparent-sockets',
    'open-files',
    'tproxy',
    'persist',
    'redirect',
    'iptables',
    'loopback',
  ];
  assert.equal(
    findings.map(({ id }) => id),
    [...ids, 'ipv6', 'forwarding', 'firewall', 'io-uring', 'splice', 'pipes'],
  );
});

test('a bad option is refused', async () => {
  await doctor({ namespace: 'router' } as never).then(
    () => assert.unreachable(),
    (error) => assert.match(error.message, /no option 'namespace'/),
  );
});

/** What breaks it, what is found, and what must be undone besides. */
const illnesses: readonly {
  readonly id: string;
  readonly severity: Finding['severity'];
  readonly give: string;
  readonly what: RegExp;
  readonly clean?: string;
}[] = [
  { id: 'loopback', severity: 'fail', give: 'ip link set lo down', what: /loopback interface is down/ },
  {
    id: 'ipv6',
    severity: 'warn',
    give: 'sysctl -qw net.ipv6.conf.lo.disable_ipv6=1',
    what: /IPv6 is disabled/,
  },
  { id: 'forwarding', severity: 'warn', give: 'sysctl -qw net.ipv4.ip_forward=0', what: /net\.ipv4\.ip_forward is 0/ },
  {
    id: 'src-valid-mark',
    severity: 'fail',
    give: 'sysctl -qw net.ipv4.conf.cli0.src_valid_mark=1; ip rule add fwmark 1 lookup 100 pref 32000; ip route add local default dev lo table 100',
    what: /cli0\.src_valid_mark is 1, and kills policy rule 32000 \(lookup 100\)/,
    clean: 'ip rule del pref 32000; ip route flush table 100',
  },
  {
    id: 'bridge-netfilter',
    severity: 'fail',
    give: 'ip link add br0 type bridge; sysctl -qw net.bridge.bridge-nf-call-iptables=1',
    what: /what comes from the ports of br0 is lost/,
    clean: 'ip link del br0',
  },
  {
    id: 'leftovers',
    severity: 'warn',
    give: 'ip rule add fwmark 1/3 lookup 100 pref 98 protocol 84; ip route add local default dev lo table 100 protocol 84',
    what: /has left 0 chains, 1 policy rules, 1 routes/,
  },
];
for (const { id, severity, give, what, clean } of illnesses)
  test(`${id}: found, and mended by what it says`, async () => {
    assert.equal(await wrong(id), []);
    sh(give);
    try {
      const [finding, ...more] = await wrong(id);
      assert.equal(more, []);
      assert.is(finding?.severity, severity);
      assert.match(finding?.summary ?? '', what);
      const fix = finding?.fix ?? '';
      if (fix.startsWith('linux-tproxy ')) await succeed(cli(lab, 'router', ...fix.split(' ').slice(1)));
      else sh(fix);
      assert.equal(await wrong(id), []);
    } finally {
      if (clean) sh(clean);
    }
  });

/** Input chains of people who know nothing of us. */
const firewalls: Readonly<Record<string, readonly [make: string, remove: string]>> = {
  'nft, by policy': [
    `nft 'table inet filter { chain input { type filter hook input priority filter; policy drop;
       ct state invalid drop; ct state established,related accept; iifname "lo" accept; tcp dport 22 accept; meta l4proto { icmp, icmpv6 } accept; }; }'`,
    'nft delete table inet filter',
  ],
  'nft, by a chain that rejects': [
    `nft 'table inet filter {
       chain services { tcp dport 22 accept; reject; }
       chain input { type filter hook input priority filter; meta l4proto { icmp, icmpv6 } accept; ct state established accept; jump services; }; }'`,
    'nft delete table inet filter',
  ],
  iptables: [
    `for t in iptables-nft ip6tables-nft; do
       $t -A INPUT -m conntrack --ctstate INVALID -j DROP; $t -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; $t -A INPUT -p tcp --dport 22 -j ACCEPT
     done
     iptables-nft -A INPUT -p icmp -j ACCEPT; ip6tables-nft -A INPUT -p icmpv6 -j ACCEPT
     for t in iptables-nft ip6tables-nft; do $t -N reject; $t -A reject -j REJECT; $t -A INPUT -j reject; done`,
    'nft delete table ip filter; nft delete table ip6 filter',
  ],
};
for (const [name, [make, remove]] of Object.entries(firewalls))
  test(`firewall (${name}): what is intercepted is dropped, found, and let in by what it says`, async () => {
    const proxy = await startProxy(lab);
    const both = (options = {}) =>
      Promise.all(Object.values(addresses.server).map((address) => ask(lab, 'client', address, 80, options)));
    try {
      assert.equal(await both(), ['proxy', 'proxy']);
      assert.equal(await wrong('firewall'), []);
      sh(make);
      assert.not((await both({ timeoutMs: 1000 })).includes('proxy'), 'the firewall lets it in');
      const findings = await wrong('firewall');
      assert.is(findings.length, name === 'iptables' ? 2 : 1);
      for (const { fix = '', severity } of findings) {
        assert.is(severity, 'warn');
        sh(fix.replace(/^ip6?tables/, '$&-nft'));
      }
      assert.equal(await wrong('firewall'), []);
      assert.equal(await both(), ['proxy', 'proxy']);
    } finally {
      sh(remove);
      await stop(proxy);
    }
  });

test('a firewall that cannot hit what is intercepted is not suspected', async () => {
  sh(`nft 'table inet filter { chain input { type filter hook input priority filter; policy accept;
        ct state invalid drop; iifname "lo" drop; meta mark & 0x3 == 0x2 drop; meta mark & 0x3 == 0x1 counter accept; tcp dport 80 drop; }; }'`);
  try {
    assert.equal(await wrong('firewall'), []);
  } finally {
    sh('nft delete table inet filter');
  }
});

test('an interception that is not whole, and one where nobody listens', async () => {
  const rules = await installIntercept({ port: 50080, tcp: [80], netns, lifetime: 'permanent', repair: false });
  try {
    assert.equal(await wrong('intact'), []);
    const [nobody] = await wrong('listener');
    assert.is(nobody?.severity, 'fail');
    assert.match(nobody?.summary ?? '', /nobody listens on TCP port 50080/);
    assert.match(nobody?.detail ?? '', /passes unproxied/);
    sh(`ip -6 rule del pref ${rules.plan.priority + 1}`);
    const [broken] = await wrong('intact');
    assert.is(broken?.severity, 'fail');
    assert.match(broken?.detail ?? '', /policy rule .* \(ipv6\)/);
    assert.is(broken?.fix, 'linux-tproxy down --name 50080, and linux-tproxy up again');
  } finally {
    await rules.uninstall();
  }
  const proxy = await startProxy(lab);
  assert.equal(await wrong('listener'), []);
  await stop(proxy);
});

/** With the system calls refused, as by a container's seccomp profile. */
const refusing = (refusals: readonly string[], ...args: string[]) => {
  const refuse = new URL('../helpers/refuse.py', import.meta.url).pathname;
  return outcome(
    'nsenter',
    `--net=${netns}`,
    'python3',
    refuse,
    ...refusals,
    '--',
    ...command('doctor', '--json', ...args),
  );
};

for (const errno of ['EPERM', 'ENOSYS'])
  test(`what is refused with ${errno} to relays is told, and what they do instead`, async () => {
    const { status, stdout } = await refusing([`io_uring_setup=${errno}`, `splice=${errno}`]);
    assert.is(status, 0, 'it is no failure');
    const found: Finding[] = JSON.parse(stdout).filter(({ severity }: Finding) => severity !== 'ok');
    assert.equal(
      found.map(({ id, severity, summary }) => [id, severity, summary]),
      [
        ['io-uring', 'warn', 'io_uring is not allowed'],
        ['splice', 'warn', 'splice is not allowed'],
      ],
    );
    assert.match(found[0]?.detail ?? '', /engine epoll/);
    assert.match(found[1]?.detail ?? '', /engine copy/);
  });

test('without privileges it says so, and what it has not looked at', async () => {
  const [file, ...args] = command('doctor', '--json');
  const { status, stdout } = await outcome(
    'nsenter',
    `--net=${netns}`,
    'setpriv',
    '--bounding-set=-net_admin,-net_raw',
    '--inh-caps=-all',
    '--ambient-caps=-all',
    file,
    ...args,
  );
  assert.is(status, 1);
  const found: Finding[] = JSON.parse(stdout);
  const failed = found.filter(({ severity }) => severity === 'fail');
  assert.equal(
    failed.map(({ id }) => id),
    ['net-admin', 'transparent-sockets'],
  );
  assert.match(failed[0]?.detail ?? '', /rules were not looked at/);
  for (const { fix } of failed) assert.match(fix ?? '', /AmbientCapabilities=CAP_NET_ADMIN/);
  assert.not(found.some(({ id }) => id === 'firewall'));
});

test('the command: what is wrong, with what mends it; --all; the exit status', async () => {
  assert.match(await succeed(cli(lab, 'router', 'doctor')), /^Nothing is wrong \(\d+ checks\)\.\n$/);
  const all = await succeed(cli(lab, 'router', 'doctor', '--all'));
  assert.match(all, /^OK {4}may change rules\n {6}CAP_NET_ADMIN/);
  sh('ip link set lo down');
  const { status, stdout } = await cli(lab, 'router', 'doctor');
  assert.is(status, 1);
  assert.match(stdout, /^FAIL {2}the loopback interface is down\n {6}.*\n {6}mend: ip link set lo up\n/);
  sh('ip link set lo up');
});

test.run();
