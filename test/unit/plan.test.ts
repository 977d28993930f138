import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { claimText, leaving, parseClaim } from '../../src/intercept/nftables.js';
import { type PlanOptions, planIntercept, withOnDown } from '../../src/intercept/plan.js';
import { sharedName } from '../../src/intercept/shared.js';

const test = suite('plan');
const plan = (options: Partial<PlanOptions> = {}) => planIntercept({ port: 50080, ...options });

test('the classical mark, table and priority by default; families, routes and rules both', () => {
  const { fwmark, socketMark, table, priority, routes, rules, nftTable } = plan({ tcp: [80] });
  assert.equal(
    { fwmark, socketMark, table, priority, nftTable },
    {
      fwmark: { value: 1, mask: 3 },
      socketMark: 3,
      table: 100,
      priority: 97,
      nftTable: 'linux-tproxy-50080',
    },
  );
  assert.equal(
    routes.map(({ family, type, dev, table }) => `${family} ${type} ${dev} ${table}`),
    ['ipv4 local lo 100', 'ipv6 local lo 100'],
  );
  assert.equal(
    rules.map((rule) =>
      `${rule.family} ${rule.priority} ${rule.iif ?? ''} ${rule.action} ${rule.goto ?? rule.table ?? ''}`.trimEnd(),
    ),
    [
      'ipv4 98 lo goto 100',
      'ipv4 99  lookup 100',
      'ipv4 100  nop',
      'ipv6 98 lo goto 100',
      'ipv6 99  lookup 100',
      'ipv6 100  nop',
    ],
  );
});

test('the same options make the same plan', () => {
  const options = { tcp: [80, 443], exclude: { to: ['10.0.0.0/8'] } };
  assert.is(String(plan(options)), String(plan(options)));
  assert.equal(plan(options).nftables, plan(options).nftables);
});

test('what is made of a plan is made once, and anew of a copy', () => {
  const one = plan({ tcp: [80] });
  assert.is(one.nftables, one.nftables);
  const other = withOnDown(one, 'closed');
  assert.ok(other.nftables.length > one.nftables.length);
  assert.equal(Object.freeze(plan({ tcp: [80] })).nftables, one.nftables);
});

test('String(plan) is the list of equal commands', () => {
  const text = String(plan({ tcp: [80, '8000-8999'], exclude: { to: ['10.0.0.0/8'] }, interfaces: ['cli0'] }));
  for (const line of [
    'ip -4 route add local default dev lo table 100 protocol 84',
    'ip -6 rule add iif lo fwmark 0x1/0x3 goto 100 priority 98 protocol 84',
    'ip -4 rule add fwmark 0x1/0x3 lookup 100 priority 99 protocol 84',
    'ip -4 rule add fwmark 0x1/0x3 nop priority 100 protocol 84',
    'table inet linux-tproxy-50080 {',
    '\t\telements = { 80, 8000-8999 }',
    '\t\telements = { 10.0.0.0/8 }',
    '\t\telements = { "cli0" }',
    '\t\ttcp flags & (fin | syn | rst | ack) == syn goto syn',
  ])
    assert.ok(text.split('\n').includes(line), `${line}\n---\n${text}`);
});

test('intercept {} is the divert part alone: no sets, no tproxy', () => {
  const { nftables } = plan();
  assert.equal(
    nftables.flatMap(({ object }) => (object.kind === 'set' && object.name !== '__set%d' ? [object.name] : [])),
    [],
  );
  assert.is(
    JSON.stringify(nftables, (_, value) => (typeof value === 'bigint' ? String(value) : value)).includes('"tproxy"'),
    false,
  );
});

test('onDown closed adds a drop with the same match behind each tproxy, and nothing else', () => {
  const rules = (options: Partial<PlanOptions>) => String(plan({ tcp: [80], ...options })).split('\n');
  const [open, closed] = [rules({}), rules({ onDown: 'closed' })];
  assert.equal(
    closed.filter((line) => !open.includes(line)).map((line) => line.replace(/ comment.*/, '').trim()),
    [
      'meta l4proto tcp ip saddr . tcp sport . ip daddr . tcp dport @flows4 counter drop',
      'meta l4proto tcp ip6 saddr . tcp sport . ip6 daddr . tcp dport @flows6 counter drop',
      'iif != lo tcp dport @tcp_ports counter drop',
    ],
  );
});

test('one family: nothing is said of the other', () => {
  const { rules, routes } = plan({ tcp: [80], families: ['ipv4'] });
  assert.ok([...rules, ...routes].every(({ family }) => family === 'ipv4'));
  const text = String(plan({ tcp: [80], families: ['ipv4'] }));
  assert.match(text, 'meta nfproto != ipv4 return');
  assert.not.match(text, 'ip6 ');
});

test('a listener on one address is named in the tproxy rule', () => {
  assert.match(String(plan({ tcp: [80], address: '127.0.0.1' })), 'tproxy ip to 127.0.0.1:50080');
  assert.match(String(plan({ tcp: [80], address: '::1' })), 'tproxy ip6 to [::1]:50080');
});

test('from and to leave alone what is outside, in both families', () => {
  const text = String(plan({ tcp: [80], from: ['10.0.0.0/8'], to: ['fd00::/8'] }));
  for (const line of [
    'ip daddr != @to4 accept',
    'ip6 daddr != @to6 accept',
    'ip saddr != @from4 accept',
    'ip6 saddr != @from6 accept',
  ])
    assert.match(text, line);
});

test('redirect: one nat chain, no marks, no routing; what it cannot do is refused', () => {
  const { rules, routes, socketMark, fwmark, onDown } = plan({ tcp: [80], mode: 'redirect' });
  assert.equal(
    { rules, routes, socketMark, fwmark, onDown },
    { rules: [], routes: [], socketMark: 0, fwmark: { value: 0, mask: 0 }, onDown: 'closed' },
  );
  const bad: [Partial<PlanOptions>, RegExp][] = [
    [{ udp: [53] }, /^udp must be left out with mode 'redirect' \(.*\), not \[53\]/],
    [{ ownHost: true }, /^ownHost .*redirect/],
    [{ address: '127.0.0.1' }, /^address .*every address/],
    [{ zone: 84 }, /^zone .*redirect/],
    [{ fwmark: { value: 1, mask: 3 } }, /^fwmark .*redirect/],
    [{ onDown: 'open' }, /^onDown must be 'closed' with mode 'redirect'/],
    [{ tcp: undefined } as object, /^tcp must be given/],
  ];
  for (const [options, message] of bad)
    assert.throws(() => plan({ tcp: [80], mode: 'redirect', ...options }), message, JSON.stringify(options));
  assert.throws(() => withOnDown(plan({ tcp: [80], mode: 'redirect' }), 'open'), /'closed' with mode/);
});

test('a zone adds chains of its own and changes no other', () => {
  const chains = (options: Partial<PlanOptions>) =>
    String(plan({ tcp: [80], ...options }))
      .split('\tchain ')
      .slice(1);
  const without = chains({}).map((chain) => chain.replace(/}\nEOF.*/s, ''));
  const text = String(plan({ tcp: [80], zone: 7 }));
  assert.equal(
    chains({ zone: 7 })
      .filter((chain) => !without.includes(chain))
      .map((chain) => chain.split(' ')[0]),
    ['zone_prerouting', 'zone_syn', 'zone_listener', 'zone_output'],
  );
  assert.match(text, 'ct zone set 7');
  assert.match(String(plan({ tcp: [80], zone: 'auto' })), 'ct zone set 84');
});

test('bad input is refused before anything else', () => {
  const bad: [Partial<Record<keyof PlanOptions | 'tpc', unknown>>, string, RegExp][] = [
    [{ port: 0 }, 'ERR_OUT_OF_RANGE', /port/],
    [{ port: 65536 }, 'ERR_OUT_OF_RANGE', /port/],
    [{ port: '80' }, 'ERR_INVALID_ARG_TYPE', /port/],
    [{ tpc: [80] }, 'ERR_INVALID_ARG_VALUE', /no option 'tpc'; it takes/],
    [{ tcp: [70000] }, 'ERR_OUT_OF_RANGE', /tcp/],
    [{ from: ['10.0.0.1/8'] }, 'ERR_INVALID_ARG_VALUE', /from/],
    [{ exclude: { too: [] } }, 'ERR_INVALID_ARG_VALUE', /exclude/],
    [{ families: [] }, 'ERR_INVALID_ARG_TYPE', /families/],
    [{ families: ['ipx'] }, 'ERR_INVALID_ARG_VALUE', /families/],
    [{ interfaces: ['a name with blanks'] }, 'ERR_INVALID_ARG_VALUE', /interfaces/],
    [{ interfaces: ['sixteen-letters-'] }, 'ERR_INVALID_ARG_VALUE', /15/],
    [{ name: '../x' }, 'ERR_INVALID_ARG_VALUE', /name/],
    [{ fwmark: { value: 3, mask: 3 } }, 'ERR_OUT_OF_RANGE', /fwmark/],
    [{ fwmark: { value: 4, mask: 3 } }, 'ERR_OUT_OF_RANGE', /fwmark/],
    [{ table: 254 }, 'ERR_OUT_OF_RANGE', /table/],
    [{ priority: 0 }, 'ERR_OUT_OF_RANGE', /priority/],
    [{ mode: 'socks' }, 'ERR_INVALID_ARG_VALUE', /mode/],
    [{ zone: 0 }, 'ERR_OUT_OF_RANGE', /zone/],
    [{ zone: 65536 }, 'ERR_OUT_OF_RANGE', /zone/],
    [{ onDown: 'ajar' }, 'ERR_INVALID_ARG_VALUE', /onDown/],
    [{ lifetime: 'eternal' }, 'ERR_INVALID_ARG_VALUE', /lifetime/],
    [{ backend: 'ipset' }, 'ERR_INVALID_ARG_VALUE', /backend must be 'nftables' or 'iptables'/],
    [{ backend: 'iptables', onDown: 'open' }, 'ERR_INVALID_ARG_VALUE', /onDown.*Backend 'nftables' can let it pass/],
    [{ backend: 'iptables', name: 'ninechars' }, 'ERR_INVALID_ARG_VALUE', /name must be at most 8 long/],
    [{ address: 'localhost' }, 'ERR_INVALID_ARG_VALUE', /address/],
    [{ address: 'fe80::1%lo' }, 'ERR_INVALID_ARG_VALUE', /without a zone/],
    [{ address: '::1', families: ['ipv4'] }, 'ERR_INVALID_ARG_VALUE', /address/],
  ];
  for (const [options, code, message] of bad)
    assert.throws(
      () => plan(options as Partial<PlanOptions>),
      (error: Error & { code: string }) => error.code === code && message.test(error.message),
      JSON.stringify(options),
    );
});

test('the claim in the table comment reads back', () => {
  const fwmark = { value: 0x10000, mask: 0x30000 };
  for (const families of [['ipv4'], ['ipv6'], ['ipv4', 'ipv6']] as const)
    for (const ownHost of [false, true]) {
      const claim = { fwmark, table: 101, priority: 93, families, ownHost, rules: 17, backend: 'nftables' as const };
      assert.equal(parseClaim(claimText(claim)), claim);
    }
  assert.is(parseClaim('something else'), undefined);
});

test('the claim counts the rules, but for those of onDown', () => {
  const claimOf = (options: Partial<PlanOptions>) => {
    const text = /comment "(fwmark .*)"/.exec(String(plan(options)))?.[1];
    return parseClaim(text ?? '');
  };
  const open = plan({ tcp: [80] }).nftables.filter(({ object }) => object.kind === 'rule').length;
  assert.is(claimOf({ tcp: [80] })?.rules, open);
  assert.is(claimOf({ tcp: [80], onDown: 'closed' })?.rules, open);
  assert.equal(claimOf({ tcp: [80], families: ['ipv6'] })?.families, ['ipv6']);
});

test('the name of shared rules fits into those of chains, whatever the process', () => {
  const longest = sharedName('iptables', 4 << 20, 35); // PID_MAX_LIMIT
  plan({ name: longest, backend: 'iptables' });
  assert.is(sharedName(undefined, 4711, 0), 'divert-4711');
});

test('a plan prints without a look at who its users are', () => {
  assert.match(String(plan({ tcp: [80], ownHost: { users: ['nobody', 1234] } })), /meta skuid/);
});

test('the longest claim fits into a comment, of which nft takes 127 bytes', () => {
  const fwmark = { value: 0x40000000, mask: 0xc0000000 };
  const families = ['ipv4', 'ipv6'] as const;
  const claim = {
    fwmark,
    table: 0xffffffff,
    priority: 32766,
    families,
    ownHost: true,
    rules: 99999,
    backend: 'iptables' as const,
  };
  assert.ok(leaving(claimText(claim)).length <= 127);
});

test.run();
