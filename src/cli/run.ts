/** `linux-tproxy run`: an interception that lives as long as a command. The only file that starts another program. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { InterceptError, usageError } from '../errors.js';
import type { InstallOptions } from '../intercept/install.js';
import type { InstalledRules } from '../intercept/installation.js';
import type { Installed } from '../intercept/installed.js';
import { ownerText } from '../intercept/owner.js';
import { planIntercept } from '../intercept/plan.js';
import { interceptOptions, json, milliseconds, netns, netnsOf, toInterceptOptions } from './options.js';
import { installedData, repairedText } from './output.js';
import type { Values, Verb } from './verb.js';

export const run: Verb = {
  name: 'run',
  summary: 'intercept as long as a command runs',
  operands: { synopsis: '-- COMMAND [ARGUMENT]...', kind: 'command' },
  options: [
    ...interceptOptions,
    {
      flag: 'persist',
      help: 'The rules outlive COMMAND, and this process: the next `run --persist` of the same --name takes them over, without a gap. Linux 6.9, --backend nftables.',
    },
    {
      flag: 'grace',
      argument: 'SECONDS',
      help: 'With --persist: how long they wait for it. When nobody has come, they go. Default: 60.',
    },
    netns,
    {
      ...json,
      help: 'Prints one line of JSON on stderr for each event: installed, repaired, error, handover, end. (Standard output is that of COMMAND.)',
    },
  ],
  description: [
    "Installs the interception as `up` does, runs COMMAND, which must stay in the foreground, and takes the interception down when it ends. COMMAND has this command's standard input, output and error.",
    'Signals are passed on: HUP, TERM, USR1, USR2, and INT and QUIT (not from a terminal, which sends those two to COMMAND itself).',
    'The nf_tables table is owned by this process: nobody else can change it, `nft flush ruleset` spares it, and it is gone the moment this process is, also by kill -9. COMMAND is not killed then; it just gets no more connections. (With --backend iptables nobody owns the rules: what somebody else removes is put back, and after kill -9 they are gone within a second.)',
    'With --persist the rules stay in force when COMMAND ends, and when this process is killed, until the next `run --persist` of the same --name takes them over, or --grace is over, or `linux-tproxy down` removes them. While nobody listens they do as --on-down says: with closed nothing passes by the proxy during a restart. A COMMAND that cannot be run leaves nothing.',
    'A proxy is replaced by its next version without losing a connection where that listens on another port: start it by `run --persist` with the same --name and that --to-port, while the first one runs. When COMMAND listens, the rules are taken over in one batch; the first COMMAND gets no more connections, and goes on with those it has until it is ended.',
    'With --netns COMMAND runs in that network namespace, too (by nsenter).',
  ],
  changes: ['As `up`, while COMMAND runs; afterwards the host is as it was before (with --persist after the grace).'],
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
    [
      'Squid, past which nothing goes while it is restarted:',
      'linux-tproxy run --persist --name web --on-down closed --to-port 50080 --tcp 80 -- squid -N',
    ],
  ],
  seeAlso: ['linux-tproxy up', 'linux-tproxy down', 'nsenter(1)'],

  async run(values, operands) {
    if (operands.length === 0) throw usageError('which command is to run is missing: `-- COMMAND [ARGUMENT]...`');
    const { netns, ...planOptions } = { ...toInterceptOptions(values), ...lifetimeOf(values), ...netnsOf(values) };
    const { name, port, lifetime, tcp, udp } = planIntercept(planOptions);
    const options = { ...planOptions, ...netnsOf(values) };
    const { installIntercept } = await import('../intercept/install.js');
    const program = new Program(operands, netns);
    try {
      const predecessor = lifetime === 'persist' ? await predecessorOf(name, port, netns) : undefined;
      const { isListening } = await import('../procfs.js');
      const listens = () => (!tcp || isListening('tcp', port, netns)) && (!udp || isListening('udp', port, netns));
      // Its connections come to the other port once somebody listens there, and not before.
      if (predecessor && predecessor.port !== port && !(await program.until(listens))) return await program.run();
      const rules = await installIntercept(options);
      const say = tell(rules, values);
      try {
        const status = await program.run();
        say('end', { status });
        return status;
      } finally {
        const { delivered } = await import('../undelivered.js');
        await delivered(rules, { netns });
        await (program.hasRun || predecessor ? rules.release() : rules.uninstall());
      }
    } finally {
      program.end();
    }
  },
};

function lifetimeOf(values: Values): Pick<InstallOptions, 'lifetime' | 'graceMs'> {
  if (values['persist'] !== true) {
    if (values['grace'] !== undefined) throw usageError('--grace is of use with --persist only');
    return { lifetime: 'process' };
  }
  if (values['backend'] === 'iptables')
    throw usageError("--persist needs --backend nftables: chains in iptables' tables have no owner to outlive");
  const graceMs = milliseconds(values, 'grace');
  return { lifetime: 'persist', ...(graceMs !== undefined && { graceMs }) };
}

/** What the rules are taken over from. */
async function predecessorOf(name: string, port: number, netns: string | undefined): Promise<Installed | undefined> {
  const { listInstalled } = await import('../intercept/installed.js');
  const { installed } = await listInstalled(netns === undefined ? {} : { netns });
  const found = installed.find((each) => each.name === name && each.lifetime === 'persist');
  // COMMAND could not listen there, and whoever does would lose its rules.
  if (found?.owner && found.port === port)
    throw new InterceptError(
      'ERR_TPROXY_NAME_IN_USE',
      `${name} belongs to ${ownerText(found.owner)}, and goes to port ${port} already. To take it over while that runs, listen on another --to-port; or end that first`,
      'check',
    );
  return found;
}

/** With --json everything, without it only what went otherwise than it should; that has a text. */
type Say = (event: string, data: object, text?: string) => void;

function tell(rules: InstalledRules, values: Values): Say {
  const say: Say = (event, data, text) => {
    if (values['json'] === true) console.error(JSON.stringify({ event, ...data }));
    else if (text !== undefined) console.error(`linux-tproxy run: ${text}`);
  };
  rules.on('repaired', ({ repaired, by }) => say('repaired', { repaired, by }, repairedText({ repaired, by })));
  rules.on('error', ({ message }) => say('error', { message }, message));
  rules.on('handover', (owner) => {
    const { name } = rules.plan;
    say('handover', { name, owner }, `${ownerText(owner)} has taken over ${name}: no more connections come here`);
  });
  say('installed', installedData(rules.plan));
  return say;
}

const PASSED = ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2'] as const;
/** A terminal sends these to all of its foreground processes. Passed on they would come twice, which some take for more. */
const FROM_TERMINAL: readonly string[] = ['SIGINT', 'SIGQUIT'];
const LOOK_MS = 20;

/** COMMAND. Signals are its from the beginning: one that comes before it is started is its end. */
class Program {
  readonly #words: readonly string[];
  readonly #netns: string | undefined;
  #child: ChildProcess | undefined;
  #early: NodeJS.Signals | undefined;
  #status: Promise<number> | undefined;
  /** It could be started, and nothing came before. */
  hasRun = false;

  constructor(words: readonly string[], netns: string | undefined) {
    this.#words = words;
    this.#netns = netns;
    for (const signal of PASSED) process.on(signal, this.#pass);
  }

  readonly #pass = (signal: NodeJS.Signals) => {
    if (!this.#child) this.#early = signal;
    else if (!(FROM_TERMINAL.includes(signal) && process.stdin.isTTY)) this.#child.kill(signal);
  };

  /** Starts it, if it is not running; its exit status, once it has ended. */
  run(): Promise<number> {
    this.#status ??= this.#early ? Promise.resolve(128 + constants.signals[this.#early]) : this.#start();
    return this.#status;
  }

  /** Starts it and waits until that holds. False: it has ended before. */
  async until(holds: () => boolean): Promise<boolean> {
    const running = { yet: true };
    const ended = () => {
      running.yet = false;
    };
    void this.run().then(ended, ended);
    for (; running.yet; await sleep(LOOK_MS)) if (holds()) return true;
    return false;
  }

  end(): void {
    for (const signal of PASSED) process.off(signal, this.#pass);
    this.#child?.kill();
  }

  async #start(): Promise<number> {
    const inNamespace = this.#netns === undefined ? [] : ['nsenter', `--net=${this.#netns}`, '--'];
    const [file = '', ...rest] = [...inNamespace, ...this.#words];
    this.#child = spawn(file, rest, { stdio: 'inherit' });
    this.hasRun = this.#child.pid !== undefined;
    try {
      const [code, signal] = (await once(this.#child, 'exit')) as [number | null, NodeJS.Signals | null];
      return signal ? 128 + constants.signals[signal] : (code ?? 1);
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const [command] = this.#words;
      console.error(
        `linux-tproxy run: cannot run ${command}: ${code === 'ENOENT' ? 'there is no such command' : message}`,
      );
      return code === 'ENOENT' ? 127 : 126;
    }
  }
}
