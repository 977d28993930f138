/** `linux-tproxy relay`: the ready relay, with its rules, until a signal ends it. */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { usageError } from '../errors.js';
import { planIntercept } from '../intercept/plan.js';
import type { TransparentServer } from '../server.js';
import type { HostPort, InterceptOptions, LiveSet, PortSpec, RelayTarget } from '../types.js';
import { serveMetrics } from './metrics.js';
import {
  interceptOptions,
  json,
  milliseconds,
  netns,
  netnsOf,
  seconds,
  toInterceptOptions,
  toNumber,
} from './options.js';
import { Progress, type Tell } from './progress.js';
import { listsIn, type SetFile, setFiles } from './set-files.js';
import type { Option, Values, Verb } from './verb.js';

const options: readonly Option[] = [
  {
    flag: 'port',
    argument: 'PORT',
    key: 'port',
    required: true,
    help: 'The TCP port where the relay listens, which nothing else needs to know. From 1 to 65535.',
  },
  ...interceptOptions
    .filter(({ flag }) => !['to-port', 'udp'].includes(flag))
    .map((option) =>
      option.flag !== 'to'
        ? option
        : {
            ...option,
            argument: 'PREFIX | HOST:PORT',
            help: `${option.help} One HOST:PORT (192.0.2.1:80, [2001:db8::1]:80) is something else: where all connections are relayed to, in the place of where they were meant for.`,
          },
    ),
  ...setFiles.map(({ flag, of }) => ({
    flag,
    argument: 'FILE',
    help: `More for --${of}, from a file: separated by white space or commas, # begins a comment. Read again at SIGHUP.`,
  })),
  {
    flag: 'source',
    argument: 'WHO',
    help: "Whose address the server sees: client, proxy (this host's own), or an address. Default: client.",
    complete: ['client', 'proxy'],
  },
  {
    flag: 'source-port',
    argument: 'HOW',
    key: 'sourcePort',
    help: "How the port that the server sees is chosen: ephemeral (a free one), preserve (the client's own, or the connection fails), prefer (the client's own if it is free). Default: ephemeral.",
    complete: ['ephemeral', 'prefer', 'preserve'],
  },
  {
    flag: 'proxy-protocol',
    argument: 'VERSION',
    key: 'proxyProtocol',
    help: 'Sends a header of the PROXY protocol, version 1 or 2, ahead of what the client sends. The server must expect it.',
    complete: ['1', '2'],
  },
  {
    flag: 'engine',
    argument: 'ENGINE',
    key: 'engine',
    help: 'What moves the bytes: uring (io_uring and splice), uring-splice (splice by io_uring, too), epoll (epoll and splice), copy (no splice). Default: auto, which is the fastest that this kernel allows.',
    complete: ['auto', 'uring', 'uring-splice', 'epoll', 'copy'],
  },
  {
    flag: 'threads',
    argument: 'NUMBER',
    key: 'threads',
    help: 'So many threads accept and relay, each connection on one of them. Default: 1.',
  },
  {
    flag: 'connect-timeout',
    argument: 'SECONDS',
    help: "For connections to servers. Default: the kernel's, about two minutes.",
  },
  {
    flag: 'idle-timeout',
    argument: 'SECONDS',
    help: 'Ends connections over which nothing goes for so long. Default: never.',
  },
  {
    flag: 'drain-timeout',
    argument: 'SECONDS',
    help: 'How long open connections may go on after SIGTERM or SIGINT; those that are left then are reset. Default: as long as they like.',
  },
  {
    flag: 'metrics',
    argument: 'ADDRESS:PORT',
    help: 'Serves its counters at http://ADDRESS:PORT/metrics in the text format of Prometheus, in the network namespace that this command runs in.',
  },
  {
    flag: 'interval',
    argument: 'SECONDS',
    help: 'How often the live line, or with --json a line of counters, is printed. Default: 1.',
  },
  netns,
  {
    ...json,
    help: 'Prints one line of JSON for each event, and for the counters at each interval. Errors stay lines of text on stderr.',
  },
];

export const relay: Verb = {
  name: 'relay',
  summary: 'intercept and relay, natively, until a signal',
  options,
  description: [
    "A transparent proxy that changes nothing: each matching connection is accepted in the server's place, one to its original destination is made from the client's address, and the bytes are moved between the two by the kernel (splice). Half-close and reset are passed on as they come. It is of use for what it does not show: two short TCP connections in the place of a long one, a place where to count, another destination (--to), the PROXY protocol (--proxy-protocol).",
    'On a terminal one line tells, live, the connections and the bytes; elsewhere only the beginning and the end are told, or all of it with --json.',
    'SIGTERM and SIGINT drain: no more connections are accepted (new ones pass unproxied, or are dropped with --on-down closed), those that are open go on to their end or to --drain-timeout, and then the rules go. A second signal ends it at once.',
    'SIGHUP reads the files again that sets are read from (--exclude-to-file and so on) and changes the sets live, each at once, without touching any connection. A file that cannot be read or understood is refused with a message, and all sets stay as they are.',
    'The rules are owned by this process: they go when it does, also by kill -9, and what somebody else changes in them is put back.',
  ],
  changes: ['As `up`, while it runs; afterwards the host is as it was before.'],
  examples: [
    ['Everything that comes in, for the counters alone:', 'linux-tproxy relay --port 50080 --tcp all'],
    [
      'The web of one network, with exceptions that SIGHUP reads again, and counters for Prometheus:',
      'linux-tproxy relay --port 50080 --tcp 80,443 --from 10.0.0.0/8 --exclude-to-file /etc/linux-tproxy/exclude --metrics 127.0.0.1:9100',
    ],
    [
      "To a server that speaks the PROXY protocol, from this host's own address:",
      'linux-tproxy relay --port 50080 --tcp 80 --to 192.0.2.1:8080 --source proxy --proxy-protocol 2',
    ],
  ],
  seeAlso: ['linux-tproxy up', 'linux-tproxy status', 'splice(2)', 'io_uring(7)'],

  async run(values) {
    const files = setFiles.filter(({ flag }) => values[flag] !== undefined);
    const target = targetOf(values);
    const { server, port, address } = await serverOf(values, files, target);
    const metrics = metricsOf(values);
    const progress = new Progress(values['json'] === true, seconds(values, 'interval') ?? 1);
    const signalled = signals();
    await once(server.listen(port, address), 'listening');
    const http = metrics && (await serveMetrics(metrics, server).catch((error) => closeFirst(server, error)));
    server.on('error', (error) => progress.complain(error));
    server.on('repaired', ({ repaired, by }) => progress.tell('repaired', { repaired, by }));
    progress.start(server, started(server));
    const hangUp = () => void reload(server, values, files, progress.tell).catch((error) => progress.complain(error));
    process.on('SIGHUP', hangUp);
    try {
      await drained(server, signalled, progress);
    } finally {
      process.off('SIGHUP', hangUp);
      http?.close();
      progress.end();
    }
    return 0;
  },
};

async function serverOf(values: Values, files: readonly SetFile[], target: RelayTarget) {
  const { port, address, ...intercept } = toInterceptOptions({
    ...values,
    ...withFiles(values, files),
    'to-port': values['port'],
  });
  planIntercept({ ...intercept, port });
  const idleTimeoutMs = milliseconds(values, 'idle-timeout');
  const connectTimeoutMs = milliseconds(values, 'connect-timeout');
  const drainTimeoutMs = milliseconds(values, 'drain-timeout');
  // Loaded here, so that the help can be read where the native part cannot be.
  const { createTransparentServer } = await import('../server.js');
  const server = createTransparentServer({
    ...netnsOf(values),
    intercept: onlyReachable(intercept, target),
    relay: target,
    ...(values['engine'] !== undefined && { engine: values['engine'] as 'auto' }),
    ...(idleTimeoutMs !== undefined && { idleTimeoutMs }),
    ...(connectTimeoutMs !== undefined && { connectTimeoutMs }),
    ...(drainTimeoutMs !== undefined && { drainTimeoutMs }),
    ...(values['threads'] !== undefined && { threads: toNumber(values['threads'] as string) as number }),
  });
  return { server, port, address };
}

// ---- the command line -------------------------------------------------------------------------------------------------------

/** From a client's address only its family can be reached: the other is left alone, unless it was asked for. */
function onlyReachable(intercept: InterceptOptions, { to, from = 'client' }: RelayTarget): InterceptOptions {
  if (!to || from !== 'client' || intercept.families) return intercept;
  return { ...intercept, families: [isIP(to.address) === 4 ? 'ipv4' : 'ipv6'] };
}

function targetOf(values: Values): RelayTarget {
  const { to } = sorted(values);
  const source = (values['source'] as string | undefined) ?? 'client';
  if (!['client', 'proxy'].includes(source) && isIP(source) === 0)
    throw usageError(`--source must be client, proxy or an address, not '${source}'`);
  const version = values['proxy-protocol'];
  return {
    kind: 'relay',
    ...(to && { to }),
    from: source === 'client' || source === 'proxy' ? source : { address: source, port: 0 },
    ...(values['source-port'] !== undefined && { sourcePort: values['source-port'] as 'prefer' }),
    ...(version !== undefined && { proxyProtocol: Number(version) as 1 | 2 }),
  };
}

/** What was given for --to: at most one HOST:PORT, and prefixes. */
function sorted(values: Values): { readonly to?: HostPort; readonly prefixes: readonly string[] } {
  const given = (values['to'] ?? []) as readonly string[];
  const targets = given.flatMap((text) => hostPort(text) ?? []);
  const prefixes = given.filter((text) => !hostPort(text));
  if (targets.length > 1) throw usageError('--to takes one HOST:PORT only');
  return { ...(targets[0] && { to: targets[0] }), prefixes };
}

/** `192.0.2.1:80` or `[2001:db8::1]:80`. */
function hostPort(text: string): HostPort | undefined {
  const [, v6, v4, port] = text.match(/^(?:\[(.*)\]|([\d.]+)):(\d+)$/) ?? [];
  const address = v6 ?? v4 ?? '';
  return isIP(address) === 0 ? undefined : { address, port: Number(port) };
}

function metricsOf(values: Values): HostPort | undefined {
  const text = values['metrics'] as string | undefined;
  const at = text === undefined ? undefined : hostPort(text);
  if (text !== undefined && (!at || at.port > 65535))
    throw usageError(`--metrics must be ADDRESS:PORT, as 127.0.0.1:9100 or [::1]:9100, not '${text}'`);
  return at;
}

// ---- sets from files -----------------------------------------------------------------------------------------------------------

/** Options with what their files have. All files are read, and understood, before anything is done with any. */
function withFiles(values: Values, files: readonly SetFile[]): Values {
  const { prefixes } = sorted(values);
  const given: Values = { ...values, to: prefixes.length > 0 ? prefixes : undefined };
  const lists = files.map(({ flag, of, parse }) => {
    const flags = (given[of] ?? []) as readonly string[];
    if (flags.includes('all')) throw usageError(`either --${of} all or --${flag}`);
    const file = values[flag] as string;
    return [of, [...flags, ...listsIn(file, readFileSync(file, 'utf8'), parse)]] as const;
  });
  return { ...given, ...Object.fromEntries(lists) };
}

async function reload(server: TransparentServer, values: Values, files: readonly SetFile[], tell: Tell): Promise<void> {
  const { rules } = server;
  if (!rules) return;
  const lists = withFiles(values, files);
  for (const { of, set } of files)
    await (set(rules) as LiveSet<PortSpec | string>).replace(lists[of] as readonly string[]);
  tell('reloaded', Object.fromEntries(files.map(({ of }) => [of, (lists[of] as readonly string[]).length])));
}

// ---- beginning and end ----------------------------------------------------------------------------------------------------------

function started(server: TransparentServer) {
  const { engine } = server.stats();
  const { name, nftTable, families, fwmark, table, priority } = (server.rules as NonNullable<typeof server.rules>).plan;
  const { address, port } = server.address() as { address: string; port: number };
  return { address, port, engine, name, nftTable, families, fwmark, table, priority };
}

async function closeFirst(server: TransparentServer, error: unknown): Promise<never> {
  await new Promise((resolve) => server.close(resolve));
  throw error;
}

/** From now on signals end nothing by themselves: each call of what this gives waits for one, or takes one that came. */
function signals(): () => Promise<'signal'> {
  let waiting = 0;
  let wake = () => {};
  for (const signal of ['SIGTERM', 'SIGINT'])
    process.on(signal, () => {
      waiting++;
      wake();
    });
  return () =>
    new Promise((resolve) => {
      wake = () => {
        if (waiting === 0) return;
        waiting--;
        wake = () => {};
        resolve('signal');
      };
      wake();
    });
}

/** Waits for a signal, and then for the last connection or another signal. */
async function drained(
  server: TransparentServer,
  signalled: () => Promise<'signal'>,
  progress: Progress,
): Promise<void> {
  await signalled();
  const closed = new Promise<'closed'>((resolve) => server.close(() => resolve('closed')));
  progress.tell('draining', { open: server.stats().connections.open });
  if ((await Promise.race([closed, signalled()])) === 'closed') return;
  progress.tell('cut off', { open: server.stats().connections.open });
  progress.end();
  await server.rules?.uninstall();
  process.exit(0); // closes what is left
}
