// takes long
/** Installing, taking down, failing half-way, being killed: what the host looks like before and after. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  createTransparentServer,
  type InstallOptions,
  type InterceptError,
  installIntercept,
  type NetlinkError,
  planIntercept,
} from '../../src/index.js';
import type { InterceptOptions } from '../../src/types.js';
import { compiled } from '../helpers/compiled.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { inside, sideBySide } from '../helpers/side-by-side.js';
import { ask, greet, greeting } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';

const test = suite('install');
let lab: Lab;
let netns: string;
const installOnce = compiled('test/helpers/intercept-once.ts');

test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
  await greet(lab, 'server', 'server', 80);
});
test.after(() => lab.dispose());

// ---- the same as the commands -----------------------------------------------------------------------------------------

/** What `nft`, `ip rule` and `ip route` show of a namespace. */
const listing = (host: string, table: string) =>
  inside(host, `nft list table inet ${table}; for f in -4 -6; do ip $f -d rule; ip $f route show table all; done`);

const variants: Record<string, InterceptOptions> = {
  'divert alone': {},
  'two ports': { tcp: [80, 443] },
  'all ports, closed': { tcp: true, onDown: 'closed' },
  'every option': {
    tcp: [80, '8000-8999'],
    from: ['10.0.0.0/8', 'fd00::/8'],
    to: ['192.0.2.0/24', '198.51.100.7', '2001:db8::/32'],
    exclude: { from: ['10.1.2.3'], to: ['192.0.2.128/25', '2001:db8:1::/48', '2001:db8::5'] },
    interfaces: ['lo'],
    onDown: 'closed',
    fwmark: { value: 0x10000, mask: 0x30000 },
    table: 1234,
    priority: 500,
    name: 'every',
  },
  'IPv4 only': { tcp: [80], families: ['ipv4'] },
  'IPv6 only': { tcp: [80], families: ['ipv6'], exclude: { to: ['fd00::/8'] } },
  'UDP and TCP': { tcp: [80], udp: [53, '9000-9999'] },
  'UDP alone, all ports, closed': { udp: true, onDown: 'closed' },
  'ports to come': { tcp: [], udp: [] },
  'own host': { tcp: [80], udp: [53], ownHost: true },
  'own host, all ports, of some users, closed': {
    tcp: true,
    udp: true,
    ownHost: { users: ['root', 'nobody', 1234] },
    onDown: 'closed',
  },
  'own host, one user, UDP and IPv6 alone': { udp: [53], ownHost: { users: [1234] }, families: ['ipv6'] },
  'everything excluded, to the last address': { tcp: ['1-65535'], exclude: { to: ['0.0.0.0/0', 'ffff::/16'] } },
};

for (const [name, intercept] of Object.entries(variants)) {
  test(`installed, it lists as it does after the commands of String(plan): ${name}`, () =>
    sideBySide(async () => {
      const options = { ...intercept, port: 50080, lifetime: 'permanent' as const };
      const rules = await installIntercept({ ...options, netns: '/run/netns/ours' });
      assert.is(String(rules.plan), String(planIntercept(options)), 'on an empty host the plan needs no change');
      inside('theirs', String(rules.plan));
      assert.is(listing('ours', rules.plan.nftTable), listing('theirs', rules.plan.nftTable));
      assert.equal(await rules.verify(), { intact: true, missing: [] });
      await rules.uninstall();
    }));
}

test('an owned table lists the same but for its owner', async () => {
  await using owned = await installIntercept({ tcp: [80], port: 50080, netns });
  const text = lab.exec('router', 'nft', 'list', 'table', 'inet', owned.plan.nftTable);
  assert.match(text, 'flags owner');
  await owned.uninstall();
  await using permanent = await installIntercept({ tcp: [80], port: 50080, netns, lifetime: 'permanent' });
  const plain = lab.exec('router', 'nft', 'list', 'table', 'inet', permanent.plan.nftTable);
  assert.is(
    text
      .replace(/ # progname \S+/, '')
      .replace('\tflags owner\n', '')
      .replace('"\n\n\tset', '"\n\tset'),
    plain,
  );
});

// ---- beside an administrator's own ------------------------------------------------------------------------------------

const administrator = `
  nft '
    table inet filter {
      set trusted { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
      chain forward { type filter hook forward priority filter; policy accept; ip saddr @trusted counter accept comment "trusted"; }
      chain marks { type filter hook prerouting priority mangle; policy accept; ip saddr 192.0.2.1 meta mark set 0x1; }
    }'
  iptables-nft -t mangle -A PREROUTING -s 192.0.2.7 -j MARK --set-xmark 0x4/0x4
  iptables-nft -A FORWARD -p tcp --dport 2222 -j DROP
  ip6tables-nft -A FORWARD -p tcp --dport 2222 -j DROP
  ip rule add fwmark 0x1 lookup 100 pref 100
  ip -6 rule add fwmark 0x1 lookup 100 pref 100
  ip route add local 198.51.100.0/24 dev lo table 100
  ip -6 route add local 2001:db8:9::/48 dev lo table 100
  ip rule add from 192.0.2.0/24 lookup 77 pref 60
  ip route add blackhole 203.0.113.0/24 table 77
`;
const noAdministrator = `
  nft delete table inet filter; iptables-nft -t mangle -F; iptables-nft -F; ip6tables-nft -F
  for f in -4 -6; do ip $f rule del pref 100; ip $f route flush table 100; done
  ip rule del pref 60; ip route flush table 77`;

test("an administrator's tables, rules, marks and routes stay byte for byte as they are, and ours move elsewhere", async () => {
  lab.exec('router', 'sh', '-euc', administrator);
  const before = lab.snapshot('router');
  const server = createTransparentServer({ intercept: { tcp: [80] }, netns }, (socket) => greeting('proxy', socket));
  await once(server.listen(50080), 'listening');
  const plan = server.rules?.plan;
  assert.ok(plan);
  assert.is(
    plan.fwmark.mask & 0x5,
    0,
    'the mark bits of nft (0x1), of iptables (0x4) and of the policy rule (0x1) are theirs',
  );
  assert.is.not(plan.table, 100);
  for (const family of ['ipv4', 'ipv6'] as const)
    assert.is(await ask(lab, 'client', addresses.server[family], 80), 'proxy');
  const during = lab.snapshot('router');
  for (const line of before.split('\n')) assert.ok(during.includes(line), `still there: ${line}`);
  await new Promise((resolve) => server.close(resolve));
  assert.is(lab.snapshot('router'), before);
  lab.exec('router', 'sh', '-euc', noAdministrator);
});

test('two interceptions side by side have marks, tables and priorities of their own', async () => {
  const before = lab.snapshot('router');
  const one = await installIntercept({ tcp: [80], port: 50080, netns });
  const two = await installIntercept({ tcp: [443], port: 50443, netns });
  assert.is(one.plan.fwmark.mask & two.plan.fwmark.mask, 0);
  assert.is.not(one.plan.table, two.plan.table);
  // The first of the four has no rule without own-host traffic, and is taken all the same.
  assert.ok(Math.abs(one.plan.priority - two.plan.priority) >= 4);
  await one.uninstall();
  assert.equal(await two.verify(), { intact: true, missing: [] });
  await two.uninstall();
  await two.uninstall(); // again is no error
  assert.is(lab.snapshot('router'), before);
});

test('what a table claims is taken, where nothing else of it is there yet', async () => {
  const before = lab.snapshot('router');
  const one = await installIntercept({ tcp: [80], port: 50080, netns, lifetime: 'permanent', repair: false });
  const flush = `nft flush table inet linux-tproxy-50080; for f in -4 -6; do ip $f rule flush protocol 84; ip $f route flush table 100; done`;
  lab.exec('router', 'sh', '-euc', flush);
  const two = await installIntercept({ tcp: [443], port: 50443, netns });
  assert.is(one.plan.fwmark.mask & two.plan.fwmark.mask, 0);
  assert.is.not(one.plan.table, two.plan.table);
  assert.ok(Math.abs(one.plan.priority - two.plan.priority) >= 4);
  await two.uninstall();
  await one.uninstall();
  assert.is(lab.snapshot('router'), before);
});

test('several at once all get what they need, and nothing of it is left', async () => {
  const before = lab.snapshot('router');
  const installs = await Promise.all(
    Array.from({ length: 6 }, (_, index) => installIntercept({ tcp: [80 + index], port: 51000 + index, netns })),
  );
  assert.is(new Set(installs.map(({ plan }) => plan.table)).size, 6);
  assert.is(
    installs.reduce((bits, { plan }) => bits + plan.fwmark.mask, 0),
    installs.reduce((bits, { plan }) => bits | plan.fwmark.mask, 0),
  );
  await Promise.all(installs.map((each) => each.uninstall()));
  assert.is(lab.snapshot('router'), before);
});

// ---- failing half-way ---------------------------------------------------------------------------------------------------

for (const call of ['sendto', 'recvmsg'])
  test(`a failure at any step (the n-th ${call} fails) leaves the host as it was`, async () => {
    lab.exec('router', 'sh', '-euc', administrator);
    const before = lab.snapshot('router');
    const trace = '/run/strace';
    const steps = new Set<string | undefined>();
    for (let n = 1; ; n++) {
      // One thread for netlink: strace counts by thread.
      const strace = ['UV_THREADPOOL_SIZE=1', 'strace', '-f', '--seccomp-bpf', '-qq', '-o', trace];
      const inject = [...strace, '-e', `trace=${call}`, '-e', `inject=${call}:error=EIO:when=${n}`];
      const node = [process.execPath, installOnce];
      const output = lab.exec('router', 'env', ...inject, ...node, JSON.stringify({ tcp: [80], port: 50080 }));
      const [first, ...rest] = output
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line));
      const happened = `${call} number ${n}: ${output}`;
      if (first.error) {
        assert.ok(['EIO', 'ERR_TPROXY_INSTALL'].includes(first.error.code), happened);
        steps.add(first.error.step);
      } else {
        // It did not matter, or it hit the removal, which is then told and works at the second try.
        assert.equal(rest.at(-1), { uninstalled: true }, happened);
        if (rest.length > 1) steps.add('uninstall');
      }
      assert.is(lab.snapshot('router'), before, happened);
      if (!readFileSync(trace, 'utf8').includes('INJECTED')) break;
    }
    for (const step of ['table', 'routes', 'rules', 'batch', 'uninstall'])
      assert.ok(steps.has(step), `a failure at step ${step} was among them`);
    lab.exec('router', 'sh', '-euc', noAdministrator);
  });

// ---- killed -------------------------------------------------------------------------------------------------------------

test('kill -9: everything is gone, and traffic goes its own way', async () => {
  const before = lab.snapshot('router');
  const options = JSON.stringify({ tcp: [80], port: 50080, name: 'mortal' });
  const holder = await lab.node('router', installOnce, options, 'hold');
  assert.match(lab.exec('router', 'nft', 'list', 'tables'), 'linux-tproxy-mortal');
  await holder.stop('SIGKILL');
  assert.not.match(lab.exec('router', 'nft', 'list', 'tables'), 'linux-tproxy-mortal');
  for (const family of ['ipv4', 'ipv6'] as const)
    assert.is(await ask(lab, 'client', addresses.server[family], 80), 'server');
  await until(() => lab.snapshot('router') === before, 'the rest is gone'); // see guard.test.ts for all the ways to die
});

test('process.exit() without a word takes everything down', async () => {
  const before = lab.snapshot('router');
  const source = `import { installIntercept } from '${compiled('src/index.ts')}';
    await installIntercept({ tcp: [80], port: 50080 }); process.exit(0);`;
  lab.exec('router', process.execPath, '--input-type=module', '--eval', source);
  assert.is(lab.snapshot('router'), before);
});

// ---- what cannot be -----------------------------------------------------------------------------------------------------

async function refused(options: Partial<InstallOptions>): Promise<InterceptError | NetlinkError> {
  const before = lab.snapshot('router');
  try {
    const rules = await installIntercept({ tcp: [80], port: 50080, netns, ...options });
    await rules.uninstall();
  } catch (error) {
    assert.is(lab.snapshot('router'), before);
    return error as InterceptError;
  }
  throw new Error('was not refused');
}

test('an interface that is not there', async () => {
  const { code, message } = await refused({ interfaces: ['cli0', 'eth7'] });
  assert.is(code, 'ERR_TPROXY_NO_INTERFACE');
  assert.match(message, /no interface 'eth7' here, only .*cli0/);
});

test('a table, mark or priority that somebody else uses', async () => {
  lab.exec(
    'router',
    'sh',
    '-euc',
    'ip route add blackhole 192.0.2.0/24 table 444; ip rule add fwmark 0x20/0x30 lookup 445 pref 1000',
  );
  for (const [options, code, words] of [
    [{ table: 444 }, 'ERR_TPROXY_TABLE_IN_USE', 'ip route show table 444'],
    [{ table: 445 }, 'ERR_TPROXY_TABLE_IN_USE', '445'],
    [{ fwmark: { value: 0x10, mask: 0x30 } }, 'ERR_TPROXY_MARK_IN_USE', '0x30'],
    [{ priority: 998 }, 'ERR_TPROXY_PRIORITY_IN_USE', '998 to 1001'],
  ] as const) {
    const error = await refused(options);
    assert.is(error.code, code);
    assert.match(error.message, words);
  }
  lab.exec('router', 'sh', '-euc', 'ip route flush table 444; ip rule del pref 1000');
});

test('a name that is in use, by a living process and by nobody', async () => {
  const before = lab.snapshot('router');
  const holder = await lab.node('router', installOnce, JSON.stringify({ port: 50080, name: 'taken' }), 'hold');
  const error = await refused({ name: 'taken' });
  assert.is(error.code, 'ERR_TPROXY_NAME_IN_USE');
  assert.match(error.message, `held by process ${holder.process.pid} (node). Stop that process`);
  await holder.stop();
  await until(() => lab.snapshot('router') === before, 'all of it is gone');
  lab.exec('router', 'nft', 'add', 'table', 'inet', 'linux-tproxy-orphan');
  const orphan = await refused({ name: 'orphan' });
  assert.is(orphan.code, 'ERR_TPROXY_NAME_IN_USE');
  assert.match(orphan.message, 'nft delete table inet linux-tproxy-orphan');
  lab.exec('router', 'nft', 'delete', 'table', 'inet', 'linux-tproxy-orphan');
});

test('a namespace that is not there, and one whose loopback is down', async () => {
  await installIntercept({ port: 50080, netns: '/run/netns/nowhere' }).then(
    () => assert.unreachable(),
    (error) => {
      assert.is(error.code, 'ENOENT');
      assert.match(error.message, 'ip netns list');
    },
  );
  execFileSync('ip', ['netns', 'add', 'down']);
  await installIntercept({ port: 50080, netns: '/run/netns/down' }).then(
    () => assert.unreachable(),
    (error) => {
      assert.is(error.code, 'ERR_TPROXY_UNSUPPORTED');
      assert.match(error.message, 'ip link set lo up');
    },
  );
  execFileSync('ip', ['netns', 'delete', 'down']);
});

test('IPv6 switched off: IPv4 alone is installed', async () => {
  execFileSync('sh', [
    '-euc',
    'ip netns add v4only; ip netns exec v4only sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip -n v4only link set lo up',
  ]);
  const rules = await installIntercept({ tcp: [80], port: 50080, netns: '/run/netns/v4only' });
  assert.equal(rules.plan.families, ['ipv4']);
  await rules.uninstall();
  execFileSync('ip', ['netns', 'delete', 'v4only']);
});

/** What `intercept-once.ts` says when it is run by the command in front. */
function runRefused(...command: [string, ...string[]]): { code: string; message: string } {
  const node = [process.execPath, installOnce];
  const output = lab.exec('router', ...command, ...node, JSON.stringify({ tcp: [80], port: 50080 }));
  return JSON.parse(output.split('\n')[0] ?? '').error;
}

test('a kernel without nf_tables', () => {
  const refuse = new URL('../helpers/refuse.py', import.meta.url).pathname;
  const before = lab.snapshot('router');
  const { code, message } = runRefused('python3', refuse, 'socket:0=16:2=12=EPROTONOSUPPORT', '--');
  assert.is(code, 'EPROTONOSUPPORT');
  assert.match(message, 'CONFIG_NF_TABLES');
  assert.is(lab.snapshot('router'), before);
});

test('no CAP_NET_ADMIN', () => {
  const { code, message } = runRefused('setpriv', '--bounding-set', '-net_admin', '--inh-caps', '-net_admin');
  assert.is(code, 'EPERM');
  assert.match(message, 'CAP_NET_ADMIN');
});

test.run();
