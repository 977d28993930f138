/**
 * How fast is the relay? `npm run bench [-- --quick] [--rounds N] [--seconds N] [--only LOAD,...] [--peers PEER,...]`
 *
 * Client, router and server are the namespaces of the tests (test/helpers/lab.ts), with the real rules and connections from
 * the client's address. Every peer runs alone, one after the other, and does so again in each round: what is compared is
 * always of one round, and the ratios shown are medians of the rounds. Every run begins with an integrity check; those that a
 * peer fails are told, and it is tried again: a relay of ours that fails one ends the bench.
 * Writes bench/RESULTS.md and its charts; if only a part was asked for it prints the tables instead.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { addresses, createLab, hosts, type Lab } from '../test/helpers/lab.js';
import { type Bar, barChart } from './chart.js';
import { type Counted, type Measured, median, type Results } from './figures.js';
import { generator, type Load, type LoadName, loads, root, target } from './loads.js';
import { type PeerName, peers, ports, proxyPort, type Running } from './peers.js';
import { countedTable, figureTable, loadTable, number } from './report.js';

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    only: { type: 'string' },
    peers: { type: 'string' },
  },
});
const rounds = Number(options.rounds ?? (options.quick ? 1 : 5));
const seconds = Number(options.seconds ?? (options.quick ? 1 : 2));
const chosen = (list: string | undefined, name: string) => !list || list.split(',').includes(name);
const chosenLoads = (Object.keys(loads) as LoadName[]).filter((name) => chosen(options.only, name));
const peersOf = (load: LoadName) =>
  (loads[load] as Load).peers.filter((name) => name === 'ours' || chosen(options.peers, name));

// ---- measuring ------------------------------------------------------------------------------------------------------------

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
const drain = (lab: Lab) => Promise.all(hosts.map((host) => lab.run(host, 'ss', '-K', 'state', 'time-wait')));

const checks = new Map<PeerName, { made: number; failed: number }>();
const checkBytes = 8 * 2 ** 20;
const notOurs: readonly PeerName[] = ['haproxy', 'haproxyAuto', 'haproxy1M', 'nginx', 'node'];
async function checkIntegrity(lab: Lab, name: PeerName): Promise<void> {
  const tally = checks.get(name) ?? { made: 0, failed: 0 };
  checks.set(name, tally);
  for (let tries = 1; ; tries++) {
    tally.made++;
    try {
      await lab.run('client', generator, 'check', target, `${ports.echo}`, `${checkBytes}`);
      return;
    } catch (error) {
      tally.failed++;
      if (tries === 5 || !notOurs.includes(name)) throw error;
    }
  }
}

/** A peer that has just carried every byte. */
async function withPeer<T>(lab: Lab, name: PeerName, body: (running: Running) => Promise<T>): Promise<T> {
  await drain(lab);
  const running: Running = await peers[name].start(lab);
  try {
    await checkIntegrity(lab, name);
    const result = await body(running);
    // Without a listener the rules would have let everything pass by it.
    const listener = lab.exec('router', 'ss', '-Hltn', `sport = :${proxyPort}`);
    if (running.pid !== undefined && listener === '') throw new Error(`${name} listens no more`);
    return result;
  } finally {
    await running.stop();
  }
}

async function measure(lab: Lab, load: Load, pid: number | undefined): Promise<Measured> {
  await drain(lab);
  await sleep(200);
  const before = [machineSeconds(), processSeconds(pid)] as const;
  const { amount, ...figures } = await load.run(lab, seconds);
  const [machine, process] = [machineSeconds() - before[0], processSeconds(pid) - before[1]];
  return { ...figures, machine: (machine / amount) * load.scale, process: (process / amount) * load.scale };
}

async function inRounds(lab: Lab): Promise<Results> {
  const results = new Map(
    chosenLoads.map((load) => [load, new Map(peersOf(load).map((peer) => [peer, [] as Measured[]]))]),
  );
  for (let round = 0; round < rounds; round++) {
    for (const load of chosenLoads) {
      // Nobody is always the one behind the same neighbour.
      const order = round % 2 ? [...peersOf(load)].reverse() : peersOf(load);
      for (const peer of order) {
        const measured = await withPeer(lab, peer, ({ pid }) => measure(lab, loads[load], pid));
        results.get(load)?.get(peer)?.push(measured);
        const { rate, process, machine, p99, beside } = measured;
        const row = [rate, process, machine, p99, beside].map((value) => (value === undefined ? '' : number(value)));
        console.log([`${round + 1}/${rounds}`, load, peer, ...row].join('\t'));
      }
    }
  }
  return results;
}

// ---- counting -------------------------------------------------------------------------------------------------------------

async function systemCallsOf(lab: Lab, peer: PeerName): Promise<number> {
  return withPeer(lab, peer, async ({ pid }) => {
    const file = '/run/strace';
    const strace = lab.spawn('router', 'strace', '-c', '-f', '-p', `${pid}`, '-o', file);
    await strace.until(/attached/);
    await sleep(300);
    const { count } = JSON.parse(await lab.run('client', generator, 'short', target, `${ports.answer}`, '64', '1'));
    await strace.stop('SIGINT');
    const [, calls] = readFileSync(file, 'utf8').match(/(\d+)\s+(?:\d+\s+)?total$/m) ?? [];
    return Number(calls) / count;
  });
}

const idleConnections = 8000;
async function idleOf(lab: Lab, peer: PeerName): Promise<{ bytes: number; pipes: number }> {
  return withPeer(lab, peer, async ({ program }) => {
    if (!program) throw new Error('forwarding holds nothing');
    let told = program.output().length;
    const look = async (): Promise<{ resident: number; pipes: number }> => {
      program.process.kill('SIGUSR2');
      while (!program.output().slice(told).includes('\n')) await sleep(20);
      const line = program.output().slice(told);
      told += line.length;
      return JSON.parse(line);
    };
    // Until the collector has given back what it gives back.
    const settled = async () => {
      for (let before = await look(), tries = 0; ; before = await look(), tries++) {
        await sleep(2000);
        const after = await look();
        if (tries === 5 || Math.abs(after.resident - before.resident) < 2 ** 16) return after;
      }
    };
    const { resident } = await settled();
    await loads.bulk8.run(lab, 1);
    const idle = lab.spawn(
      'client',
      'sh',
      '-c',
      manyFiles,
      'sh',
      generator,
      'idle',
      target,
      `${ports.echo}`,
      `${idleConnections}`,
    );
    await idle.until(/ready/, 30_000);
    const { resident: after, pipes } = await settled();
    await idle.stop();
    return { bytes: (after - resident) / idleConnections, pipes };
  });
}
const manyFiles = 'ulimit -n "$(ulimit -H -n)" && exec "$@"';

async function once(lab: Lab): Promise<Counted> {
  const systemCalls: Partial<Record<PeerName, number>> = {};
  const idle: Partial<Record<PeerName, { bytes: number; pipes: number }>> = {};
  const who = (['ours', 'haproxy'] as const).filter((peer) => peer === 'ours' || chosen(options.peers, peer));
  for (const peer of who) {
    if (chosen(options.only, 'calls')) systemCalls[peer] = await systemCallsOf(lab, peer);
    if (chosen(options.only, 'idle') && peer === 'ours') idle[peer] = await idleOf(lab, peer);
    console.log('counted', peer, systemCalls[peer], idle[peer]);
  }
  return { systemCalls, idle };
}

// ---- telling --------------------------------------------------------------------------------------------------------------

function versions(engine: string): string {
  const first = (...command: [string, ...string[]]) =>
    execFileSync('sh', ['-c', '"$@" 2>&1', 'sh', ...command], { encoding: 'utf8' }).split('\n')[0] as string;
  const programs = [
    first('haproxy', '-v').split(' ').slice(0, 3).join(' '),
    first('nginx', '-v').replace('nginx version: ', ''),
    first('iperf3', '--version').split(' ').slice(0, 2).join(' '),
    first('sockperf', '--version').replace(/.*#([\d.]+).*/, 'sockperf $1'),
  ];
  return [
    `${cpus().length} CPUs (${cpus()[0]?.model.trim()}), Linux ${release()}, Node ${process.version}, ${programs.join(', ')}.`,
    checksText(),
    `Congestion control cubic in all three namespaces, MTU 1500, one thread each, engine ${engine}. ${rounds} rounds of ${seconds} s; median (least-most).`,
  ].join('\n');
}

function checksText(): string {
  const told = [...checks].map(([name, { made, failed }]) => `${peers[name].name} ${failed} of ${made}`);
  return `Each run began with ${checkBytes >> 20} MiB of random bytes, in pieces of 1 byte to 1 MiB, through an echo and ended by half-close. Runs in which bytes were missing or wrong, or that were reset: ${told.join(', ')}.`;
}

function bars(results: Results, load: LoadName, key: 'rate' | 'machine'): Bar[] {
  return [...(results.get(load) ?? [])].map(([peer, measured]) => {
    const values = measured.map((each) => each[key]);
    const [value, low, high] = [median(values), Math.min(...values), Math.max(...values)];
    return { name: peers[peer].name, value, low, high, strong: peer === 'ours' };
  });
}

const charts = {
  throughput: ['Throughput, Gb/s', 'rate', ['bulk1', 'bulk8', 'bulk64', 'cheap8']],
  calls: ['Round trips and short connections a second', 'rate', ['rr1', 'rr64', 'short64', 'mixed']],
  cpu: ['CPU seconds of the whole machine per GB', 'machine', ['bulk1', 'bulk8', 'bulk64', 'cheap8']],
} as const;

function write(results: Results, counted: Counted, about: string, notes: string): void {
  for (const [name, [title, key, names]] of Object.entries(charts)) {
    const groups = names.map((load) => ({ title: loads[load].title, bars: bars(results, load, key) }));
    writeFileSync(`${root}bench/${name}.svg`, barChart(title, groups, number));
  }
  writeFileSync(
    `${root}bench/RESULTS.md`,
    [
      '# Results',
      '',
      'Written by `npm run bench`; do not edit. Client, router and server are network namespaces of one machine, the rules are real, and each proxy',
      "connects from the client's address (Node alone cannot: from its own). Ratios are medians of the ratios inside a round: absolute figures drift with the machine.",
      '`process` is the CPU time charged to the relay, `machine` that of everything: end points, relay, softirq. HAProxy is measured with',
      '`option splice-request` and `splice-response`; its `splice-auto` is shown beside it.',
      '',
      about,
      '',
      figureTable(results, counted, notes),
      '',
      ...Object.entries(charts).map(([name, [title]]) => `![${title}](${name}.svg)`),
      '',
      '## All that was measured',
      '',
      ...chosenLoads.map((load) => loadTable(load, results)),
      countedTable(counted),
    ].join('\n'),
  );
}

execFileSync('cmake', ['--build', `${root}build`, '--target', 'bench_load'], { stdio: 'ignore' });
const lab = await createLab();
// The sysctl refuses cubic where the machine does not allow it to everybody, the routes do not.
for (const host of hosts)
  for (const route of lab.exec(host, 'ip', 'route').trim().split('\n'))
    lab.exec(host, 'ip', 'route', 'replace', ...route.trim().split(/\s+/), 'congctl', 'cubic');
const [echo, answer, sink] = [ports.echo, ports.answer, ports.sink].map(String) as [string, string, string];
await lab.spawn('server', 'sh', '-c', manyFiles, 'sh', generator, 'serve', echo, answer, sink).until(/ready/);
await lab.spawn('server', 'iperf3', '-s', '--forceflush', '-p', `${ports.iperf}`).until(/listening/);
await lab
  .spawn('server', 'sockperf', 'sr', '--tcp', '-i', addresses.server.ipv4, '-p', `${ports.sockperf}`)
  .until(/using/);

const engine = await withPeer(lab, 'ours', async ({ program }) => {
  const idle = lab.spawn('client', generator, 'idle', target, echo, '1');
  await idle.until(/ready/);
  for (const host of hosts) {
    const sockets = lab.exec(host, 'ss', '-Htin', 'state', 'established');
    if (!/ cubic /.test(sockets) || / (bbr|reno) /.test(sockets)) throw new Error(`not cubic in ${host}:\n${sockets}`);
  }
  await idle.stop();
  return program?.output().match(/ready (\S+)/)?.[1] ?? '';
});
const results = await inRounds(lab);
const counted = await once(lab);
const notes = readFileSync(`${root}bench/notes.md`, 'utf8');
const about = versions(engine);
if (options.only || options.peers || options.quick)
  console.log(
    [
      about,
      figureTable(results, counted, notes),
      ...chosenLoads.map((load) => loadTable(load, results)),
      countedTable(counted),
    ].join('\n\n'),
  );
else write(results, counted, about, notes);
await lab.dispose();
