/**
 * How fast is the relay? `npm run bench [-- --quick] [--rounds N] [--only LOAD,...] [--peers PEER,...]`
 *
 * Client, router and server are the namespaces of the tests (test/helpers/lab.ts), with the real rules and connections from
 * the client's address. Every peer runs alone, one after the other, and does so again in each round: what is compared is
 * always of one round, and the ratios shown are medians of the rounds. Every run begins with an integrity check.
 * Writes bench/RESULTS.md, unless only a part was asked for.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { installIntercept } from '../src/index.js';
import { addresses, createLab, type Lab, type Program } from '../test/helpers/lab.js';

const ports = { echo: 7000, answer: 7001, iperf: 5201 };
const proxyPort = 50080;
const target = addresses.server.ipv4;
const root = fileURLToPath(new URL('..', import.meta.url));
const load = `${root}build/bench_load`;

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    rounds: { type: 'string' },
    only: { type: 'string' },
    peers: { type: 'string' },
  },
});
const rounds = Number(options.rounds ?? (options.quick ? 2 : 5));
const seconds = options.quick ? 1 : 2;

// ---- who is measured ------------------------------------------------------------------------------------------------------

/** A running peer: its process, where it has one. */
interface Running {
  readonly pid?: number;
  stop(): Promise<void>;
}
interface Peer {
  readonly name: string;
  start(lab: Lab): Promise<Running>;
}

const haproxy = (name: string, tuning: string): Peer => ({
  name,
  async start(lab) {
    const file = '/run/haproxy.cfg';
    writeFileSync(
      file,
      `global
  nbthread 1
  maxconn 4000
  ${tuning}
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option splice-auto
listen relay
  bind :${proxyPort} transparent backlog 4096
  source 0.0.0.0 usesrc clientip
  server original 0.0.0.0
`,
    );
    const rules = await installIntercept({ port: proxyPort, tcp: Object.values(ports), netns: lab.netns('router') });
    const program = lab.spawn('router', 'haproxy', '-db', '-f', file);
    await sleep(300);
    return {
      pid: program.process.pid as number,
      async stop() {
        await program.stop('SIGKILL');
        await rules.uninstall();
      },
    };
  },
});

const engine = (name: string): Peer => ({
  name,
  async start(lab) {
    const script = fileURLToPath(new URL('proxy.ts', import.meta.url));
    const args = [name, lab.netns('router'), proxyPort, ...Object.values(ports)].map(String);
    const program = await lab.node('router', script, ...args);
    return { pid: program.process.pid as number, stop: async () => void (await program.stop()) };
  },
});

const peers: readonly Peer[] = [
  { name: 'forwarding', start: async () => ({ stop: async () => {} }) },
  haproxy('haproxy', ''),
  haproxy('haproxy 1M', 'tune.pipesize 1048576'),
  engine('epoll'),
  engine('uring'),
].filter(({ name }) => !options.peers || options.peers.split(',').includes(name));

// ---- what they have to do -------------------------------------------------------------------------------------------------

interface Figures {
  /** What is compared: more is better. */
  readonly rate: number;
  /** What the CPU times are divided by. */
  readonly amount: number;
  readonly p99?: number;
}
interface Load {
  readonly name: string;
  readonly unit: string;
  readonly per: string;
  readonly scale: number;
  run(lab: Lab): Promise<Figures>;
}

const bulk = (connections: number): Load => ({
  name: `bulk, ${connections} connection${connections > 1 ? 's' : ''}`,
  unit: 'Gb/s',
  per: 's/GB',
  scale: 1,
  async run(lab) {
    const output = await lab.run(
      'client',
      ...(['iperf3', '-c', target, '-p', `${ports.iperf}`, '-P', `${connections}`, '-t', `${seconds}`, '-J'] as const),
    );
    const { end } = JSON.parse(output) as { end: { sum_received: { bytes: number; bits_per_second: number } } };
    return { rate: end.sum_received.bits_per_second / 1e9, amount: end.sum_received.bytes / 1e9 };
  },
});

const calls = (name: string, unit: string, verb: 'rr' | 'short', port: number, connections: number): Load => ({
  name,
  unit,
  per: verb === 'rr' ? 'us/round trip' : 'us/connection',
  scale: 1e6,
  async run(lab) {
    const output = await lab.run('client', load, verb, target, `${port}`, `${connections}`, `${seconds}`);
    const { count, seconds: took, p99 } = JSON.parse(output) as { count: number; seconds: number; p99: number };
    return { rate: count / took, amount: count, p99 };
  },
});

const loads: readonly Load[] = [
  bulk(1),
  bulk(8),
  bulk(64),
  calls('64 bytes there and back, 1 connection', '/s', 'rr', ports.echo, 1),
  calls('64 bytes there and back, 64 connections', '/s', 'rr', ports.echo, 64),
  calls('short connections, 64 at once', '/s', 'short', ports.answer, 64),
].filter(({ name }) => !options.only || options.only.split(',').some((part) => name.includes(part)));

// ---- measuring ------------------------------------------------------------------------------------------------------------

interface Measured extends Figures {
  readonly process: number;
  readonly machine: number;
}

const ticks = 100;
/** CPU seconds that are not idle, of the whole machine: softirq and kernel threads included. */
function machineSeconds(): number {
  const fields = (readFileSync('/proc/stat', 'utf8').split('\n')[0] as string).trim().split(/\s+/).slice(1).map(Number);
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = fields;
  return (user + nice + system + irq + softirq) / ticks;
}
function processSeconds(pid: number | undefined): number {
  if (pid === undefined) return 0;
  const [, rest = ''] = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ');
  const fields = rest.split(' ').map(Number);
  return ((fields[11] as number) + (fields[12] as number)) / ticks;
}

/** Connections in TIME_WAIT would be in the way of those of the next run. */
const drain = (lab: Lab) =>
  Promise.all((['client', 'router', 'server'] as const).map((host) => lab.run(host, 'ss', '-K', 'state', 'time-wait')));

async function measure(lab: Lab, which: Load, pid: number | undefined): Promise<Measured> {
  await drain(lab);
  await sleep(200);
  const before = [machineSeconds(), processSeconds(pid)] as const;
  const figures = await which.run(lab);
  const [machine, process] = [machineSeconds() - before[0], processSeconds(pid) - before[1]];
  return {
    ...figures,
    machine: (machine / figures.amount) * which.scale,
    process: (process / figures.amount) * which.scale,
  };
}

const median = (values: readonly number[]) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
};

type Results = Map<string, Map<string, Measured[]>>;

async function everything(lab: Lab): Promise<Results> {
  const results: Results = new Map(loads.map(({ name }) => [name, new Map(peers.map((peer) => [peer.name, []]))]));
  for (let round = 0; round < rounds; round++) {
    // Nobody is always the one behind the same neighbour.
    const order = round % 2 ? [...peers].reverse() : peers;
    for (const which of loads) {
      for (const peer of order) {
        const running = await peer.start(lab);
        try {
          await lab.run('client', load, 'check', target, `${ports.echo}`, `${8 * 2 ** 20}`);
          const measured = await measure(lab, which, running.pid);
          results.get(which.name)?.get(peer.name)?.push(measured);
          const { rate, process, machine, p99 } = measured;
          const row = [rate.toPrecision(4), process.toPrecision(3), machine.toPrecision(3), p99 ?? ''];
          console.log([`${round + 1}/${rounds}`, which.name, peer.name, ...row].join('\t'));
        } finally {
          await running.stop();
        }
      }
    }
  }
  return results;
}

// ---- telling --------------------------------------------------------------------------------------------------------------

function ratio(of: readonly Measured[], to: readonly Measured[] | undefined): string {
  if (!to?.length) return '';
  return median(of.map(({ rate }, round) => rate / (to[round] as Measured).rate)).toFixed(2);
}

function table({ name, unit, per }: Load, rows: Map<string, Measured[]>): string {
  const references = ['haproxy', 'haproxy 1M', 'forwarding', 'epoll'].filter((each) => rows.has(each));
  const number = (value: number) => (value >= 1000 ? String(Math.round(value)) : value.toPrecision(3));
  const lines = [...rows].map(([peer, measured]) => {
    const rates = measured.map(({ rate }) => rate);
    const p99 = measured.every(({ p99 }) => p99 !== undefined)
      ? Math.round(median(measured.map((each) => each.p99 as number)))
      : '';
    return [
      peer,
      `${number(median(rates))} (${number(Math.min(...rates))}-${number(Math.max(...rates))})`,
      ...references.map((reference) => ratio(measured, rows.get(reference))),
      peer === 'forwarding' ? '' : number(median(measured.map((each) => each.process))),
      number(median(measured.map(({ machine }) => machine))),
      p99,
    ];
  });
  const head = ['', unit, ...references.map((each) => `/ ${each}`), `process, ${per}`, `machine, ${per}`, 'p99, us'];
  const row = (cells: readonly (string | number)[]) => `| ${cells.join(' | ')} |`;
  return [`### ${name}`, '', row(head), row(head.map(() => '---')), ...lines.map(row), ''].join('\n');
}

function versions(lab: Lab): string {
  const first = (...command: [string, ...string[]]) =>
    execFileSync(command[0], command.slice(1), { encoding: 'utf8' }).split('\n')[0];
  const control = lab.exec('router', 'sysctl', '-n', 'net.ipv4.tcp_congestion_control').trim();
  return [
    `${cpus().length} CPUs (${cpus()[0]?.model.trim()}), Linux ${release()}, Node ${process.version}, ${first('haproxy', '-v')?.split(' ').slice(0, 3).join(' ')}, ${first('iperf3', '--version')}.`,
    `Congestion control ${control} in all three namespaces, MTU 1500, ${rounds} rounds of ${seconds} s; median (least-most).`,
  ].join('\n');
}

execFileSync('cmake', ['--build', `${root}build`, '--target', 'bench_load'], { stdio: 'ignore' });
const lab = await createLab();
// Where cubic is not for everybody, the machine's own default may be one that changes the ranking (bbr): the same for all.
for (const host of ['client', 'router', 'server'] as const)
  if (!/cubic/.test(lab.exec(host, 'sysctl', '-n', 'net.ipv4.tcp_congestion_control')))
    lab.exec(host, 'sysctl', '-qw', `net.ipv4.tcp_congestion_control=reno`);
const servers: Program[] = [
  lab.spawn('server', load, 'serve', `${ports.echo}`, `${ports.answer}`),
  lab.spawn('server', 'iperf3', '-s', '--forceflush', '-p', `${ports.iperf}`),
];
await servers[0]?.until(/ready/);
await servers[1]?.until(/listening/);
const results = await everything(lab);
const text = [
  '# Results',
  '',
  'Written by `npm run bench`; do not edit. Ratios are medians of the ratios inside a round: the absolute figures drift with the machine.',
  '`process` is the CPU time charged to the relay, `machine` that of everything: end points, relay, softirq.',
  '',
  versions(lab),
  '',
  ...loads.map((which) => table(which, results.get(which.name) as Map<string, Measured[]>)),
].join('\n');
await lab.dispose();
if (options.only || options.peers || options.quick) console.log(text);
else writeFileSync(`${root}bench/RESULTS.md`, text);
