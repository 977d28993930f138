/** The command without a host: its tables, its help, its completion, and how it reads a command line. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { commandHelp, firstSentence, verbHelp } from '../../src/cli/help.js';
import {
  inTermsOfFlags,
  interceptOptions,
  netnsOf,
  readCommandLine,
  toInterceptOptions,
} from '../../src/cli/options.js';
import { liveLine, scaled } from '../../src/cli/progress.js';
import { listsIn } from '../../src/cli/set-files.js';
import type { Verb } from '../../src/cli/verb.js';
import { verbs } from '../../src/cli/verbs.js';
import { planIntercept } from '../../src/intercept/plan.js';
import { parsePorts, parsePrefixes } from '../../src/intercept/ranges.js';
import { command } from '../helpers/cli.js';

const test = suite('cli');
const verb = (name: string) => verbs.find((each) => each.name === name) as Verb;
const directory = mkdtempSync(join(tmpdir(), 'linux-tproxy-cli-'));
test.after(() => rmSync(directory, { recursive: true }));

const linuxTproxy = (...args: string[]) => {
  const [file, ...rest] = command(...args);
  const { status, stdout, stderr } = spawnSync(file, rest, { encoding: 'utf8' });
  return { status, stdout, stderr };
};

// ---- reading ------------------------------------------------------------------------------------------------------------

test('every option of an interception arrives where planIntercept takes it', () => {
  const { values } = readCommandLine(verb('plan'), [
    ...['--to-port', '50080', '--tcp', '80,8000-8999', '--tcp=443', '--from', '10.0.0.0/8,fd00::/8'],
    ...['--to', '192.0.2.0/24', '--to', '2001:db8::/32', '--exclude-from', '10.1.2.3', '--exclude-to', '192.0.2.1'],
    ...['--interface', 'eth0', '--family', 'ipv4', '--on-address', '127.0.0.1', '--on-down', 'closed'],
    ...['--mode', 'tproxy', '--zone', 'auto'],
    ...['--udp', '53', '--own-host', '--own-user', 'nobody,1000', '--own-cgroup', 'user.slice'],
    ...['--backend', 'nftables', '--name', 'web', '--mark', '0x10/0x30', '--table', '123', '--priority', '1000'],
  ]);
  const options = toInterceptOptions(values);
  assert.equal(options, {
    port: 50080,
    tcp: ['80', '8000-8999', '443'],
    udp: ['53'],
    ownHost: { users: ['nobody', '1000'], cgroups: ['user.slice'] },
    from: ['10.0.0.0/8', 'fd00::/8'],
    to: ['192.0.2.0/24', '2001:db8::/32'],
    exclude: { from: ['10.1.2.3'], to: ['192.0.2.1'] },
    interfaces: ['eth0'],
    families: ['ipv4'],
    address: '127.0.0.1',
    mode: 'tproxy',
    zone: 'auto',
    onDown: 'closed',
    backend: 'nftables',
    name: 'web',
    fwmark: { value: 0x10, mask: 0x30 },
    table: 123,
    priority: 1000,
  });
  planIntercept(options); // has no option that it does not know
  assert.is(Object.keys(values).length, interceptOptions.length, 'every one was given');
});

test('the own host, all of it', () => {
  const { values } = readCommandLine(verb('plan'), ['--to-port', '1', '--tcp', '80', '--own-host']);
  assert.equal(toInterceptOptions(values), { port: 1, tcp: ['80'], ownHost: true });
});

test('all ports', () => {
  assert.equal(toInterceptOptions({ 'to-port': '1', tcp: ['all'] }), { port: 1, tcp: true });
});

test('a namespace is a path, or a name that ip netns knows', () => {
  assert.equal(netnsOf({}), {});
  assert.equal(netnsOf({ netns: 'router' }), { netns: '/run/netns/router' });
  assert.equal(netnsOf({ netns: './x' }), { netns: './x' });
});

test('what stands behind -- is the command, options of its own included', () => {
  const read = readCommandLine(verb('run'), ['--to-port', '1', '--', 'squid', '-N', '--tcp', '--', 'x']);
  assert.equal(read.operands, ['squid', '-N', '--tcp', '--', 'x']);
  assert.is(read.values['tcp'], undefined);
});

test('messages speak of the flags', () => {
  assert.is(inTermsOfFlags('port must be ...'), '--to-port must be ...');
  assert.is(inTermsOfFlags("exclude.to: a prefix must be ..., not 'x'"), "--exclude-to: a prefix must be ..., not 'x'");
  assert.is(inTermsOfFlags('fwmark.value must be ...'), '--mark.value must be ...');
  assert.is(inTermsOfFlags('Total nonsense'), 'Total nonsense');
});

for (const [args, message] of [
  [[], 'which verb is missing'],
  [['fly'], "there is no verb 'fly'"],
  [['up'], '--to-port PORT is missing'],
  [['up', '--to-port'], /--to-port.* argument missing/],
  [['up', '--to-port', 'abc'], "--to-port must be a number, not 'abc'"],
  [['plan', '--to-port', '70000'], '--to-port must be an integer from 1 to 65535, not 70000'],
  [['plan', '--to-port', '1', '--tcp', '80,'], "--tcp: a port must be a number or a range like '8000-8999', not ''"],
  [['plan', '--to-port', '1', '--from', '10.0.0.1/8'], "--from: a prefix must be without host bits ('10.0.0.0/8')"],
  [['plan', '--to-port', '1', '--exclude-to', 'x'], '--exclude-to: a prefix must be'],
  [['plan', '--to-port', '1', '--mark', '0x1'], '--mark must be VALUE/MASK'],
  [['plan', '--to-port', '1', '--on-down', 'ajar'], "--on-down must be 'open' or 'closed'"],
  [['plan', '--to-port', '1', '--tpc', '80'], "Unknown option '--tpc'"],
  [['plan', '--to-port', '1', 'more'], "Unexpected argument 'more'"],
  [['run', '--to-port', '1'], 'which command is to run is missing'],
  [['run', '--to-port', '1', 'squid'], "Unexpected argument 'squid'"],
  [['run', '--to-port', '1', '--grace', '9', '--', 'true'], '--grace is of use with --persist only'],
  [
    ['run', '--to-port', '1', '--persist', '--grace', 'x', '--', 'true'],
    "--grace must be a number of seconds, not 'x'",
  ],
  [['run', '--to-port', '1', '--persist', '--backend', 'iptables', '--', 'true'], '--persist needs --backend nftables'],
  [['down', '--all', '--name', 'x'], 'either --name or --all'],
  [['relay', '--tcp', '80'], '--port PORT is missing'],
  [['relay', '--port', '70000'], '--port must be an integer from 1 to 65535, not 70000'],
  [['relay', '--port', '1', '--to', '10.0.0.1/8'], "--to: a prefix must be without host bits ('10.0.0.0/8')"],
  [['relay', '--port', '1', '--to', '192.0.2.1:80,192.0.2.2:80'], '--to takes one HOST:PORT only'],
  [['relay', '--port', '1', '--source', 'me'], "--source must be client, proxy or an address, not 'me'"],
  [['relay', '--port', '1', '--source-port', 'x'], "--source-port must be 'ephemeral', 'prefer' or 'preserve'"],
  [['relay', '--port', '1', '--proxy-protocol', '3'], '--proxy-protocol must be 1 or 2'],
  [['relay', '--port', '1', '--engine', 'warp'], "--engine must be 'auto'"],
  [['relay', '--port', '1', '--threads', '0'], '--threads must be an integer from 1'],
  [['relay', '--port', '1', '--drain-timeout', 'x'], "--drain-timeout must be a number of seconds, not 'x'"],
  [['relay', '--port', '1', '--metrics', '9100'], '--metrics must be ADDRESS:PORT'],
  [['relay', '--port', '1', '--tcp', 'all', '--tcp-file', '/dev/null'], 'either --tcp all or --tcp-file'],
  [['completion', 'tcsh'], 'one of bash, zsh, fish'],
] as const)
  test(`refused: ${args.join(' ')}`, () => {
    const { status, stdout, stderr } = linuxTproxy(...args);
    assert.is(status, 2);
    assert.is(stdout, '');
    assert.match(stderr, message);
    assert.match(stderr, /^linux-tproxy.* --help\)\n$/, 'one line, with the remedy');
  });

// ---- telling ------------------------------------------------------------------------------------------------------------

test('the help of every verb has all that a manual page has, and fits a terminal', () => {
  for (const each of verbs) {
    const text = verbHelp(each);
    for (const section of ['NAME', 'SYNOPSIS', 'DESCRIPTION', 'OPTIONS', 'EXIT STATUS', 'EXAMPLES', 'SEE ALSO'])
      assert.match(text, new RegExp(`^${section}$`, 'm'), `${each.name}: ${section}`);
    assert.match(text, /^WHAT IS CHANGED\n {7}\S/m);
    for (const { flag, argument } of each.options)
      assert.match(text, new RegExp(`^ {7}--${flag}${argument === undefined ? '$' : ` ${argument}`}`, 'm'));
    for (const line of text.split('\n')) {
      // Commands are not broken.
      if (!line.startsWith(' '.repeat(11))) assert.ok(line.length <= 80, line);
      assert.not.match(line, /\s$/);
    }
  }
  assert.match(commandHelp(verbs), new RegExp(verbs.map(({ name }) => `${name} +\\S.*\\n[\\s\\S]*`).join('')));
});

test('examples are command lines that can be read', () => {
  for (const [what, example] of verbs.flatMap(({ examples }) => examples)) {
    const words = example
      .match(/linux-tproxy ([^|>)]*)/)?.[1]
      ?.trim()
      .split(/\s+/) as string[];
    const { values } = readCommandLine(verb(words[0] as string), words.slice(1));
    if ('to-port' in values) planIntercept(toInterceptOptions(values));
    assert.match(what, /:$/);
  }
});

test('a file of a set: comments, commas and white space; errors name file and line', () => {
  const text = '# none\n10.0.0.0/8, fd00::/8\t192.0.2.1#x\n\n';
  assert.equal(listsIn('f', text, parsePrefixes), ['10.0.0.0/8', 'fd00::/8', '192.0.2.1']);
  assert.equal(listsIn('f', '80 8000-8999', parsePorts), ['80', '8000-8999']);
  assert.throws(() => listsIn('f', '80\nhttp', parsePorts), /^f:2: a port must be a number or a range/);
});

test('the live line', () => {
  assert.equal([0, 7, 0.5, 999, 999.6, 12_345, 1e9, 2.345e10].map(scaled), [
    '0 ',
    '7 ',
    '0.50 ',
    '999 ',
    '1.00 k',
    '12.3 k',
    '1.00 G',
    '23.4 G',
  ]);
  const stats = {
    engine: 'epoll' as const,
    connections: { open: 3, total: 70_000 },
    ...{ bytesFromClient: 1500n, bytesFromServer: 10n ** 10n, spliced: 10n ** 10n, copied: 1500n, pipes: 1 },
    ...{ connectErrors: 1, acceptErrors: 1 },
  };
  const rates = { connectionsPerSecond: 4, bytesFromClientPerSecond: 125, bytesFromServerPerSecond: 1.25e9 };
  assert.is(
    liveLine(stats, rates),
    '3 open | 4 /s | up 1.00 kb/s | down 10.0 Gb/s | 70000 connections, 10.0 GB so far | 2 errors',
  );
});

test('--help and --version, and no help without being asked', () => {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  assert.equal(linuxTproxy('--version'), { status: 0, stdout: `${version}\n`, stderr: '' });
  assert.equal(linuxTproxy('--help'), { status: 0, stdout: commandHelp(verbs), stderr: '' });
  assert.equal(linuxTproxy('up', '-h'), { status: 0, stdout: verbHelp(verb('up')), stderr: '' });
});

test('a reader that has had enough is no error', () => {
  const { stdout, stderr } = spawnSync('sh', ['-c', '"$@" | head -n 1; sleep 0.2', 'sh', ...command('up', '--help')], {
    encoding: 'utf8',
  });
  assert.equal([stdout, stderr], ['NAME\n', '']);
});

// ---- completion ---------------------------------------------------------------------------------------------------------

test('first sentences', () => {
  assert.is(firstSentence('All of it.'), 'All of it');
  assert.is(firstSentence('One address (such as 127.0.0.1). No more.'), 'One address (such as 127.0.0.1)');
  assert.is(firstSentence('Ports: numbers. More.'), 'Ports');
});

const scripts = Object.fromEntries(
  ['bash', 'zsh', 'fish'].map((shell) => {
    const path = join(directory, shell);
    writeFileSync(path, linuxTproxy('completion', shell).stdout);
    return [shell, path];
  }),
) as Record<'bash' | 'zsh' | 'fish', string>;

for (const shell of ['bash', 'zsh', 'fish'] as const)
  test(`${shell}: the script can be read by the shell, and has every verb and option`, () => {
    execFileSync(shell, ['-n', scripts[shell]], { stdio: 'pipe' });
    const text = readFileSync(scripts[shell], 'utf8');
    for (const { name, options } of verbs) {
      assert.ok(text.includes(name));
      for (const { flag } of options) assert.ok(text.includes(shell === 'fish' ? `-l ${flag} ` : `--${flag}`), flag);
    }
  });

/** What is offered for the last word. */
const offered = {
  bash(...words: string[]): string[] {
    const code = `source "$1"; shift
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _linux_tproxy; printf '%s\\n' "\${COMPREPLY[@]}"`;
    return lines('bash', '-c', code, 'bash', scripts.bash, ...words);
  },
  fish(...words: string[]): string[] {
    const code = 'source $argv[1]; complete -C "$argv[2..]"';
    return lines('fish', '--no-config', '-c', code, scripts.fish, ...words).map(
      (line) => line.split('\t')[0] as string,
    );
  },
};
const lines = (file: string, ...args: string[]) =>
  execFileSync(file, args, { encoding: 'utf8', env: { ...process.env, HOME: directory } })
    .trim()
    .split('\n');

for (const [shell, offer] of Object.entries(offered))
  test(`${shell}: verbs, options, their arguments, and the command behind --`, () => {
    for (const each of verbs) assert.ok(offer('linux-tproxy', '').includes(each.name));
    assert.equal(offer('linux-tproxy', 'up', '--fam'), ['--family']);
    assert.equal(offer('linux-tproxy', 'up', '--family', 'ip').sort(), ['ipv4', 'ipv6']);
    assert.equal(offer('linux-tproxy', 'run', '--on-down', 'c'), ['closed']);
    assert.equal(offer('linux-tproxy', 'completion', 'z'), ['zsh']);
    assert.ok(offer('linux-tproxy', 'up', '--interface', 'l').includes('lo'));
    assert.ok(offer('linux-tproxy', 'run', '--to-port', '1', '--', 'unsha').includes('unshare'));
  });

test.run();
