/** `linux-tproxy run`: an interception that lives as long as a command. The only file that starts another program. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import { usageError } from '../errors.js';
import { interceptOptions, netns, netnsOf, toInterceptOptions } from './options.js';
import type { Verb } from './verb.js';

export const run: Verb = {
  name: 'run',
  summary: 'intercept as long as a command runs',
  operands: { synopsis: '-- COMMAND [ARGUMENT]...', kind: 'command' },
  options: [...interceptOptions, netns],
  description: [
    "Installs the interception as `up` does, runs COMMAND, which must stay in the foreground, and takes the interception down when it ends. COMMAND has this command's standard input, output and error.",
    'Signals are passed on: HUP, TERM, USR1, USR2, and INT and QUIT (not from a terminal, which sends those two to COMMAND itself).',
    'The nf_tables table is owned by this process: nobody else can change it, `nft flush ruleset` spares it, and it is gone the moment this process is, also by kill -9. COMMAND is not killed then; it just gets no more connections. (With --backend iptables nobody owns the rules: what somebody else removes is put back, and after kill -9 they are gone within a second.)',
    'With --netns COMMAND runs in that network namespace, too (by nsenter).',
  ],
  changes: ['As `up`, while COMMAND runs; afterwards the host is as it was before.'],
  exitStatus: [
    ['126', 'COMMAND was found and cannot be run.'],
    ['127', 'COMMAND was not found.'],
    ['128+N', 'COMMAND was ended by signal N.'],
    ['other', 'That of COMMAND. (So 1 and 2 may be its own.)'],
  ],
  examples: [
    ['Squid, with `http_port 50080 tproxy`:', 'linux-tproxy run --to-port 50080 --tcp 80 -- squid -N'],
    [
      'HAProxy, with `bind :50443 transparent`:',
      'linux-tproxy run --to-port 50443 --tcp 443 -- haproxy -db -f haproxy.cfg',
    ],
  ],
  seeAlso: ['linux-tproxy up', 'nsenter(1)'],

  async run(values, [command, ...args]) {
    if (command === undefined) throw usageError('which command is to run is missing: `-- COMMAND [ARGUMENT]...`');
    const options = { ...toInterceptOptions(values), ...netnsOf(values) };
    let child: ChildProcess | undefined;
    let early: NodeJS.Signals | undefined;
    const pass = (signal: NodeJS.Signals) => {
      if (!child) early = signal;
      else if (!(FROM_TERMINAL.includes(signal) && process.stdin.isTTY)) child.kill(signal);
    };
    for (const signal of PASSED) process.on(signal, pass);
    try {
      const { installIntercept } = await import('../intercept/install.js');
      const rules = await installIntercept({ ...options, lifetime: 'process' });
      try {
        if (early) return 128 + constants.signals[early];
        child = start(options.netns, command, args);
        return await exitStatusOf(child, command);
      } finally {
        await rules.uninstall();
      }
    } finally {
      for (const signal of PASSED) process.off(signal, pass);
    }
  },
};

const PASSED = ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2'] as const;
/** A terminal sends these to all of its foreground processes. Passed on they would come twice, which some take for more. */
const FROM_TERMINAL: readonly string[] = ['SIGINT', 'SIGQUIT'];

function start(path: string | undefined, command: string, args: readonly string[]): ChildProcess {
  const inNamespace = path === undefined ? [] : ['nsenter', `--net=${path}`, '--'];
  const [file = '', ...rest] = [...inNamespace, command, ...args];
  return spawn(file, rest, { stdio: 'inherit' });
}

async function exitStatusOf(child: ChildProcess, command: string): Promise<number> {
  try {
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
    return signal ? 128 + constants.signals[signal] : (code ?? 1);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    console.error(
      `linux-tproxy run: cannot run ${command}: ${code === 'ENOENT' ? 'there is no such command' : message}`,
    );
    return code === 'ENOENT' ? 127 : 126;
  }
}
