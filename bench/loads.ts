/** What the peers have to do. Each load checks what arrives: sockperf and load.cc every byte, iperf3 and the sink their number. */
import { fileURLToPath } from 'node:url';
import { addresses, type Lab } from '../test/helpers/lab.js';
import { type PeerName, ports } from './peers.js';

export const target = addresses.server.ipv4;
export const root = fileURLToPath(new URL('..', import.meta.url));
export const generator = `${root}build/bench_load`;

export interface Figures {
  /** What is compared: more is better. */
  readonly rate: number;
  /** What the CPU times are divided by. */
  readonly amount: number;
  readonly p99?: number;
  /** Of what went on at the same time. */
  readonly beside?: number;
}
export interface Load {
  readonly title: string;
  readonly unit: string;
  /** Of the CPU times. */
  readonly per: string;
  readonly scale: number;
  readonly peers: readonly PeerName[];
  run(lab: Lab, seconds: number): Promise<Figures>;
}

const ask = async (lab: Lab, ...args: (string | number)[]) =>
  JSON.parse(await lab.run('client', generator, ...args.map(String))) as {
    count: number;
    seconds: number;
    p99: number;
  };

async function iperf(lab: Lab, connections: number, seconds: number): Promise<Figures> {
  const args = ['-c', target, '-p', `${ports.iperf}`, '-P', `${connections}`, '-t', `${seconds}`, '-J'];
  const { end } = JSON.parse(await lab.run('client', 'iperf3', ...args)) as {
    end: { sum_received: { bytes: number; bits_per_second: number } };
  };
  return { rate: end.sum_received.bits_per_second / 1e9, amount: end.sum_received.bytes / 1e9 };
}

const bulk = (connections: number, peers: readonly PeerName[]): Load => ({
  title: `bulk, ${connections} connection${connections > 1 ? 's' : ''} (iperf3)`,
  unit: 'Gb/s',
  per: 's/GB',
  scale: 1,
  peers,
  run: (lab, seconds) => iperf(lab, connections, seconds),
});

const calls = (
  title: string,
  verb: 'rr' | 'short',
  port: number,
  connections: number,
  peers: readonly PeerName[],
): Load => ({
  title,
  unit: '/s',
  per: verb === 'rr' ? 'µs/round trip' : 'µs/connection',
  scale: 1e6,
  peers,
  async run(lab, seconds) {
    const { count, seconds: took, p99 } = await ask(lab, verb, target, port, connections, seconds);
    return { rate: count / took, amount: count, p99 };
  },
});

export const loads = {
  bulk1: bulk(1, ['forwarding', 'haproxy', 'haproxy1M', 'ours']),
  bulk8: bulk(8, [
    'forwarding',
    'haproxyAuto',
    'haproxy',
    'haproxy1M',
    'nginx',
    'node',
    'ours',
    'epoll',
    'uringSplice',
  ]),
  bulk64: bulk(64, ['forwarding', 'haproxy', 'haproxy1M', 'ours']),
  cheap8: {
    title: 'bulk, 8 connections, cheap end points (sendfile, MSG_TRUNC)',
    unit: 'Gb/s',
    per: 's/GB',
    scale: 1,
    peers: ['forwarding', 'haproxy', 'ours'],
    async run(lab, seconds) {
      const { count, seconds: took } = await ask(lab, 'stream', target, ports.sink, 8, seconds);
      return { rate: (count * 8) / took / 1e9, amount: count / 1e9 };
    },
  },
  short64: calls('short connections, 64 at a time', 'short', ports.answer, 64, [
    'haproxy',
    'node',
    'ours',
    'decide',
    'listener',
  ]),
  rr64: calls('64 bytes there and back, 64 connections', 'rr', ports.echo, 64, [
    'forwarding',
    'haproxy',
    'ours',
    'epoll',
  ]),
  rr1: {
    title: '64 bytes there and back, 1 connection (sockperf)',
    unit: '/s',
    per: 'µs/round trip',
    scale: 1e6,
    peers: ['forwarding', 'haproxy', 'ours'],
    async run(lab, seconds) {
      const args = ['pp', '--tcp', '-i', target, '-p', `${ports.sockperf}`, '-m', '64', '-t', `${seconds}`];
      const output = await lab.run('client', 'sockperf', ...args, '--full-rtt', '--data-integrity');
      const number = (pattern: RegExp) => Number(output.match(pattern)?.[1]);
      // The CPU times are those of the whole run, warm-up included; the latencies of its valid part.
      const total = number(/Total Run\].*ReceivedMessages=(\d+)/);
      const wrong = output.match(/# dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0/);
      if (!total || !wrong) throw new Error(output);
      const [, took, count] = output.match(/Valid Duration\] RunTime=([\d.]+) sec; .*ReceivedMessages=(\d+)/) ?? [];
      return { rate: Number(count) / Number(took), amount: total, p99: number(/percentile 99\.000 = +([\d.]+)/) };
    },
  },
  mixed: {
    title: 'one bulk flow (iperf3) beside 64 connections with 64 bytes there and back',
    unit: '/s',
    per: 'µs/round trip',
    scale: 1e6,
    peers: ['haproxy', 'ours'],
    async run(lab, seconds) {
      // Both for the whole time that is measured: the one that begins first ends last.
      const flow = iperf(lab, 1, seconds);
      const { count, seconds: took, p99 } = await ask(lab, 'rr', target, ports.echo, 64, seconds);
      return { rate: count / took, amount: count, p99, beside: (await flow).rate };
    },
  },
  paced: {
    title: '64 bytes there and back, 1 connection, 2,000 a second, evenly spaced',
    unit: '/s',
    per: 'µs/round trip',
    scale: 1e6,
    peers: ['ours', 'epoll'],
    async run(lab, seconds) {
      const { count, seconds: took, p99 } = await ask(lab, 'paced', target, ports.echo, 2000, seconds);
      return { rate: count / took, amount: count, p99 };
    },
  },
} satisfies Record<string, Load>;
export type LoadName = keyof typeof loads;
