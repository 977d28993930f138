// takes long
/** The command on a real host: what it installs, tells and takes down, and what the host looks like before and after. */
import { once } from 'node:events';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { backends } from '../helpers/backends.js';
import { cli, command, outcome, succeed } from '../helpers/cli.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { ask, greet } from '../helpers/talk.js';

const test = suite('cli');
let lab: Lab;
let before: string;
const router = (...args: string[]) => cli(lab, 'router', ...args);
const sh = (script: string) => lab.exec('router', 'sh', '-euc', script);
const json = async (...args: string[]) => JSON.parse((await router(...args, '--json')).stdout);

test.before(async () => {
  lab = await createLab();
  await greet(lab, 'server', 'server', 80);
  // An administrator's own, in the classical places.
  sh(`
    nft 'table inet filter { chain forward { type filter hook forward priority filter; policy accept; tcp dport 2222 drop; }; }'
    ip rule add fwmark 0x2/0x3 lookup 100 pref 100
    ip route add local 198.51.100.0/24 dev lo table 100`);
  before = lab.snapshot('router');
});
test.after(() => lab.dispose());
/** However a test ends, the next one begins anew. */
test.after.each(async () => {
  assert.is((await router('down', '--all')).status, 0);
  assert.is(lab.snapshot('router'), before);
});

const up = ['up', '--to-port', '50080', '--tcp', '80'];

test('redirect: up, status and down, without marks and policy rules', async () => {
  const options = [...up, '--mode', 'redirect'];
  const text = await succeed(router(...options));
  assert.match(text, /mode +redirect/);
  assert.not.match(text, /fwmark|priorities/);
  const [{ mode, onDown, intact, port }] = (await json('status')).installed;
  assert.equal({ mode, onDown, intact, port }, { mode: 'redirect', onDown: 'closed', intact: true, port: 50080 });
  const none = await router(...options, '--name', 'udp', '--udp', '53');
  assert.is(none.status, 2);
  assert.match(none.stderr, /--udp must be left out with mode 'redirect'/);
  await succeed(router('down', '--name', '50080'));
  assert.is(lab.snapshot('router'), before);
});

test('up warns of bridges whose traffic would be lost, not of those it leaves out', async () => {
  sh('ip link add br0 type bridge; sysctl -qw net.bridge.bridge-nf-call-iptables=1');
  try {
    const warned = await router(...up);
    assert.is(warned.status, 0);
    const lost = /^linux-tproxy up: warning: What comes from the ports of br0 is lost .*\n$/;
    assert.match(warned.stderr, lost, JSON.stringify(warned));
    await succeed(router('down'));
    await succeed(router(...up, '--interface', 'cli0'));
  } finally {
    sh('ip link del br0');
  }
});

for (const backend of backends)
  test(`${backend}: up tells what it chose, status finds the same, down leaves nothing; both can be done again`, async () => {
    const options = [
      ...['up', '--to-port', '50080', '--tcp', '80,8000-8999', '--exclude-to', '192.0.2.0/24,2001:db8::1', '--from'],
      ...['10.0.0.0/8', '--from', 'fd00::/8', '--interface', 'cli0,lo', '--on-down', 'closed', '--name', 'web'],
      ...['--backend', backend],
    ];
    const text = await succeed(router(...options));
    const [installed] = (await json('status')).installed;
    const { fwmark, table, priority } = installed;
    assert.equal(
      { ...installed, counters: Object.keys(installed.counters) },
      {
        ...{
          name: 'web',
          backend,
          nftTable: 'linux-tproxy-web',
          lifetime: 'permanent',
          families: ['ipv4', 'ipv6'],
          port: 50080,
        },
        ...{ ownHost: false, mode: 'tproxy', onDown: 'closed', fwmark, table, priority, intact: true, missing: [] },
        sets: {
          tcp_ports: ['80', '8000-8999'],
          exclude_to4: ['192.0.2.0/24'],
          exclude_to6: ['2001:db8::1'],
          exclude_from4: [],
          exclude_from6: [],
          from4: ['10.0.0.0/8'],
          from6: ['fd00::/8'],
          interfaces: ['cli0', 'lo'],
        },
        counters: ['intercepted', 'remembered', 'diverted', 'dropped'],
      },
    );
    assert.is(fwmark.mask & 0x3, 0, "the bits of 0x3 are the administrator's");
    assert.is.not(table, 100);
    for (const line of [
      'web: up',
      'delivers to     :50080 (ipv4, ipv6)',
      backend === 'nftables'
        ? 'nf_tables       table inet linux-tproxy-web'
        : 'iptables        table mangle, chain linux-tproxy-web',
      `fwmark          0x${fwmark.value.toString(16)}/0x${fwmark.mask.toString(16)}`,
      `routing table   ${table}`,
      `priorities      ${priority} to ${priority + 3}`,
    ])
      assert.ok(text.includes(line), `${line} in\n${text}`);

    const again = await router(...options);
    assert.is(again.status, 1);
    assert.match(again.stderr, /^linux-tproxy up: The table .* exists already: .*`linux-tproxy down --name web`.*\n$/);

    assert.is(await succeed(router('down', '--name', 'web')), 'web: down\n');
    assert.is(lab.snapshot('router'), before);
    assert.is(await succeed(router('down', '--name', 'web')), 'Nothing to take down.\n');
    await succeed(router(...up, '--backend', backend));
    assert.match(await succeed(router('down', '--name', '5008')), /by that name; there is 50080\.\n$/);
    await succeed(router('down'));
    assert.is(await succeed(router('down')), 'Nothing to take down.\n');
    assert.is(await succeed(router('status')), 'Nothing is installed.\n');
    assert.is((await router('status', '--name', 'web')).status, 1);
  });

test('--json: every document can be read, and has what the text has', async () => {
  const installed = await json(...up);
  assert.equal([installed.name, installed.port, installed.onDown], ['50080', 50080, 'open']);
  const { installed: all, leftovers } = await json('status');
  assert.equal({ ...all[0], ...installed }, all[0], 'status says what up said');
  assert.equal(leftovers, { chains: [], rules: [], routes: [] });
  assert.equal(await json('down'), { down: ['50080'], leftovers: { chains: [], rules: 0, routes: 0 } });
  const plan = await json('plan', '--to-port', '50080', '--tcp', '80');
  assert.equal([plan.rules.length, plan.routes.length], [6, 2]);
  assert.match(plan.script, 'table inet linux-tproxy-50080');
});

test('counters and what the traffic does: unproxied while nobody listens, dropped with --on-down closed', async () => {
  const counters = async () => (await json('status')).installed[0].counters;
  await succeed(router(...up));
  for (const family of ['ipv4', 'ipv6'] as const)
    assert.is(await ask(lab, 'client', addresses.server[family], 80), 'server');
  assert.is((await counters()).intercepted.packets, 0);
  await succeed(router('down'));
  await succeed(router(...up, '--on-down', 'closed'));
  for (const family of ['ipv4', 'ipv6'] as const)
    assert.is(await ask(lab, 'client', addresses.server[family], 80, { timeoutMs: 500 }), 'ETIMEDOUT');
  assert.ok((await counters()).dropped.packets >= 2);
});

test('--netns works from elsewhere, by path and by name', async () => {
  for (const path of ['/run/netns/router', 'router']) {
    await succeed(cli(lab, 'client', ...up, '--netns', path));
    assert.is((await json('status')).installed.length, 1);
    assert.match(await succeed(cli(lab, 'client', 'status', '--netns', path)), '50080: permanent, intact');
    assert.is(await succeed(cli(lab, 'client', 'status')), 'Nothing is installed.\n');
    await succeed(cli(lab, 'client', 'down', '--netns', path));
    assert.is(lab.snapshot('router'), before);
  }
  const { status, stderr } = await router('status', '--netns', 'nowhere');
  assert.is(status, 1);
  assert.match(stderr, /^linux-tproxy status: open \/run\/netns\/nowhere: ENOENT.*`ip netns list`.\n$/);
});

test('several: down wants to know which', async () => {
  await succeed(router(...up));
  await succeed(router('up', '--to-port', '50443', '--tcp', '443', '--name', 'tls', '--on-address', '::1'));
  const { status, stderr } = await router('down');
  assert.is(status, 2);
  assert.match(stderr, 'there are 50080, tls: say which by --name, or --all');
  assert.match(
    await succeed(router('status')),
    /50080: permanent, intact\n[\s\S]*tls: permanent, intact\n.*\[::1\]:50443 \(ipv6\)/,
  );
  assert.is(await succeed(router('down', '--name', '50080')), '50080: down\n');
  assert.match(await succeed(router('status')), /^tls: permanent, intact/);
  assert.is(await succeed(router('down')), 'tls: down\n');
  assert.is(lab.snapshot('router'), before);
  await succeed(router(...up));
  await succeed(router(...up, '--name', 'second', '--tcp', '81'));
  assert.is(await succeed(router('down', '--all')), '50080: down\nsecond: down\n');
});

// ---- what others do to it -------------------------------------------------------------------------------------------------

for (const [what, damage, missing] of [
  ['a policy rule', 'ip rule del protocol 84 pref $((PRIORITY + 2)) lookup $TABLE', /policy rule \d+ \(ipv4\)$/m],
  ['all policy rules of IPv6', 'ip -6 rule flush protocol 84', /policy rule \d+ \(ipv6\)\n.*\(ipv6\)\n.*\(ipv6\)$/m],
  ['a route', 'ip -6 route flush table $TABLE', /route local default in table \d+ \(ipv6\)$/m],
  ['all rules in the table', 'nft flush table inet linux-tproxy-50080', /table inet linux-tproxy-50080: 0 of \d+$/m],
  [
    'a chain’s rules',
    'nft flush chain inet linux-tproxy-50080 divert',
    /table inet linux-tproxy-50080: [1-9]\d* of \d+$/m,
  ],
] as const)
  test(`status tells what is missing, and down removes the rest: ${what}`, async () => {
    const { table, priority } = await json(...up);
    sh(`TABLE=${table} PRIORITY=${priority}; ${damage}`);
    const { status, stdout } = await router('status');
    assert.is(status, 1);
    assert.match(stdout, '50080: permanent, NOT INTACT');
    assert.match(stdout, missing);
    assert.is(await succeed(router('down')), '50080: down\n');
    assert.is(lab.snapshot('router'), before);
  });

test('of an emptied table it is still known that it was for this host itself, too', async () => {
  const { priority } = await json(...up, '--own-host');
  assert.match(await succeed(router('status')), /^50080: permanent, intact\n/);
  sh(`nft flush table inet linux-tproxy-50080; ip rule del pref ${priority}`);
  assert.match((await router('status')).stdout, `missing         policy rule ${priority} (ipv4)\n`);
  assert.is(await succeed(router('down')), '50080: down\n');
  assert.is(lab.snapshot('router'), before);
});

test('somebody deletes the table (nft flush ruleset): what is left is told, and removed by down or by the next up', async () => {
  for (const remedy of ['down', 'up']) {
    await succeed(router(...up));
    sh('nft delete table inet linux-tproxy-50080');
    const { status, stdout } = await router('status');
    assert.is(status, 0);
    assert.match(
      stdout,
      /^Nothing is installed\.\nLeft by a killed process.* 6 policy rules, 2 routes\..*`linux-tproxy down`/,
    );
    if (remedy === 'up') await succeed(router(...up));
    else assert.match(await succeed(router('down')), 'left: 6 policy rules, 2 routes.\nNothing to take down.\n');
    assert.is((await json('status')).leftovers.rules.length, 0);
  }
});

// ---- run ------------------------------------------------------------------------------------------------------------------

const run = (...args: string[]) => ['run', '--to-port', '50080', '--tcp', '80', '--', ...args];
const tables = () => lab.exec('router', 'nft', 'list', 'tables');
/** Starts it in the router and waits for the line with which the command says that it is there. */
async function running(...args: string[]): Promise<Program> {
  const program = lab.spawn('router', ...command(...run(...args)));
  await program.until(/^here \d+$/m);
  return program;
}

test('run: the rules are there while the command is, and its exit status is the answer', async () => {
  for (const status of [0, 7]) {
    const { stdout, ...rest } = await router(
      ...run('sh', '-c', `nft list tables; ip rule; echo error >&2; exit ${status}`),
    );
    assert.equal(rest, { status, stderr: 'error\n' });
    assert.match(stdout, 'table inet linux-tproxy-50080');
    assert.match(stdout, /fwmark \S+ lookup \d+ proto 84/);
    assert.is(lab.snapshot('router'), before);
  }
  assert.is((await router(...run('sh', '-c', 'kill -KILL $$'))).status, 128 + 9);
});

test('run --json: lines on stderr tell what is installed, what is repaired by whose fault, and the end', async () => {
  const program = lab.spawn('router', ...command('run', '--json', ...run('sh', '-c', 'read line; exit 7').slice(1)));
  const events = () =>
    program
      .output()
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line));
  await program.until(/"event":"installed"/);
  const { event: _, ...installed } = events()[0];
  assert.equal({ ...(await json('status')).installed[0], ...installed }, (await json('status')).installed[0]);
  lab.exec('router', 'ip', 'rule', 'del', 'pref', String(installed.priority + 2));
  await program.until(/"event":"repaired"/);
  assert.equal(events()[1].repaired, [`policy rule ${installed.priority + 2} (ipv4)`]);
  program.process.stdin?.end('\n');
  await program.until(/"event":"end"/);
  assert.equal(events()[2], { event: 'end', status: 7 });
  await program.stop('SIGCONT'); // it ends by itself
  assert.is(lab.snapshot('router'), before);
});

test('run: a command that cannot be run', async () => {
  for (const [name, status, message] of [
    ['/no/such/command', 127, 'cannot run /no/such/command: there is no such command'],
    ['/etc/passwd', 126, 'cannot run /etc/passwd: .*EACCES'],
  ] as const) {
    const result = await router(...run(name));
    assert.is(result.status, status);
    assert.match(result.stderr, new RegExp(`^linux-tproxy run: ${message}\n$`));
    assert.is(lab.snapshot('router'), before);
  }
});

test('run: standard input reaches the command', async () => {
  const program = lab.spawn('router', ...command(...run('sh', '-c', 'read line; echo "got $line"')));
  program.process.stdin?.end('something\n');
  await program.until(/^got something$/m);
  await program.stop();
});

test('run: signals are passed on, and the command may do with them what it likes', async () => {
  const traps = ['HUP', 'INT', 'QUIT', 'TERM', 'USR1', 'USR2']
    .map((name) => `trap 'echo got ${name}' ${name};`)
    .join(' ');
  const program = await running('sh', '-c', `${traps} echo here $$; while :; do sleep 0.05; done`);
  for (const name of ['HUP', 'INT', 'QUIT', 'TERM', 'USR1', 'USR2']) {
    program.process.kill(`SIG${name}` as NodeJS.Signals);
    await program.until(new RegExp(`^got ${name}$`, 'm'));
  }
  assert.match(tables(), 'linux-tproxy-50080');
  process.kill(await childOf(program), 'SIGKILL');
  await program.stop('SIGCONT'); // it ends by itself
  assert.is(program.process.exitCode, 128 + 9);
  assert.is(lab.snapshot('router'), before);
});

test('run: SIGTERM ends a command that knows nothing of it, and all is taken down', async () => {
  const program = await running('sh', '-c', 'echo here $$; exec sleep 100');
  assert.is(await program.stop('SIGTERM'), 128 + 15);
  assert.is(lab.snapshot('router'), before);
});

test('run: Ctrl-C at a terminal reaches the command once', async () => {
  const counting = `process.on('SIGINT', () => console.log('got INT')); setTimeout(() => console.log('end'), 1000)`;
  const words = command(...run(process.execPath, '-e', `${counting}; console.log('here')`));
  const line = words.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(' ');
  const program = lab.spawn('router', 'script', '--quiet', '--return', '--command', `exec ${line}`, '/dev/null');
  await program.until(/^here\s*$/m);
  program.process.stdin?.write('\x03');
  await program.until(/^end\s*$/m);
  assert.is(program.output().match(/got INT/g)?.length, 1);
  await program.stop();
});

test('run: a signal that comes before the command is started ends it all', async () => {
  // Every message to the kernel takes a while, and is told on stderr.
  const slow = ['-D', '-f', '-qq', '-e', 'trace=sendto', '-e', 'inject=sendto:delay_enter=100000'];
  const program = lab.spawn('router', 'strace', ...slow, ...command(...run('echo', 'started')));
  await program.until(/RTM_GETRULE/);
  assert.is(await program.stop('SIGTERM'), 128 + 15);
  assert.match(program.output(), 'NFT_MSG_NEWTABLE');
  assert.not.match(program.output(), /^started$/m);
  assert.is(lab.snapshot('router'), before);
});

test('run --netns: the command runs in the namespace, too', async () => {
  const links = await succeed(
    cli(lab, 'client', 'run', '--netns', 'router', '--to-port', '1', '--', 'sh', '-c', 'ip link; nft list tables'),
  );
  assert.match(links, /cli0[\s\S]*srv0[\s\S]*linux-tproxy-1/);
  assert.is(lab.snapshot('router'), before);
});

test('run: nobody else can touch the table, and down says whose it is', async () => {
  const program = await running('sh', '-c', 'echo here $$; exec sleep 100');
  sh('nft flush ruleset');
  assert.match(tables(), 'linux-tproxy-50080');
  const [installed] = (await json('status')).installed;
  assert.equal([installed.lifetime, installed.intact], ['process', true]);
  const { pid } = program.process;
  assert.equal(installed.owner, { netlinkPort: pid, processId: pid, command: 'node' });
  await succeed(router(...up, '--name', 'second', '--tcp', '81'));
  for (const args of [['--name', '50080'], ['--all']]) {
    const { status, stderr } = await router('down', ...args);
    assert.is(status, 1);
    assert.match(
      stderr,
      new RegExp(`^linux-tproxy down: .*50080.* belongs to process ${program.process.pid} \\(node\\).*\n$`),
    );
  }
  assert.is(tables(), 'table inet linux-tproxy-50080\n', '--all took down the other one');
  assert.match((await router('down')).stderr, 'which is running: it goes when that ends');
  await program.stop();
  before = lab.snapshot('router'); // without what `nft flush ruleset` has taken from the administrator
  assert.not.match(before, 'proto 84');
});

test('run: kill -9, and the table is gone at once; the command lives on, its traffic unproxied; down removes the rest', async () => {
  const program = await running('sh', '-c', 'echo here $$; exec sleep 100');
  const child = await childOf(program);
  assert.match(tables(), 'linux-tproxy-50080');
  program.process.kill('SIGKILL');
  await once(program.process, 'exit');
  assert.is(tables(), '');
  process.kill(child, 0);
  for (const family of ['ipv4', 'ipv6'] as const)
    assert.is(await ask(lab, 'client', addresses.server[family], 80), 'server');
  await router('down');
  assert.is(lab.snapshot('router'), before);
  process.kill(child, 'SIGKILL');
});

async function childOf(program: Program): Promise<number> {
  return Number((await program.until(/^here (\d+)$/m))[1]);
}

// ---- plan -----------------------------------------------------------------------------------------------------------------

test('plan: without any privilege, and the script does what up does', async () => {
  const options = [
    ...['--to-port', '50080', '--tcp', '80', '--exclude-to', '10.0.0.0/8'],
    ...['--mark', '0x10/0x30', '--table', '444', '--priority', '500'],
  ];
  const [file, ...args] = command('plan', ...options);
  const none = ['--bounding-set=-all', '--inh-caps=-all', '--ambient-caps=-all'];
  const script = await succeed(outcome('setpriv', ...none, file, ...args));
  assert.is(lab.snapshot('router'), before);
  sh(script);
  assert.match(await succeed(router('status')), '50080: permanent, intact');
  const theirs = lab.snapshot('router');
  await succeed(router('down'));
  assert.is(lab.snapshot('router'), before);

  await succeed(router('up', ...options));
  assert.is(lab.snapshot('router'), theirs);
  await succeed(router('down'));

  lab.exec('client', 'sh', '-euc', await succeed(cli(lab, 'client', 'plan', ...options, '--netns', 'router')));
  assert.is(lab.snapshot('router'), theirs, 'with --netns the script enters the namespace');
});

// ---- what cannot be -------------------------------------------------------------------------------------------------------

test('without CAP_NET_ADMIN: one line that says so, exit status 1', async () => {
  for (const args of [up, ['down'], ['status'], run('true')]) {
    const { status, stdout, stderr } = await outcome(
      'setpriv',
      ...['--bounding-set=-net_admin', '--inh-caps=-net_admin', ...command(...args)],
    );
    assert.equal([status, stdout], [1, '']);
    assert.match(stderr, /^linux-tproxy \w+: .*EPERM.*CAP_NET_ADMIN.*\n$/);
  }
});

test('what is in the way on the host is a failure, not a usage error', async () => {
  for (const [args, message] of [
    [['--interface', 'eth7'], "There is no interface 'eth7' here, only lo"],
    [['--table', '100'], 'Routing table 100 is in use'],
    [['--mark', '0x2/0x3'], 'shares bits with marks that are in use'],
  ] as const) {
    const { status, stderr } = await router(...up, ...args);
    assert.is(status, 1);
    assert.match(stderr, message);
    assert.is(stderr.split('\n').length, 2);
  }
});

test.run();
