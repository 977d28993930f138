/** The figures that are to be reached, each made of the medians of ratios inside a round. */
import type { LoadName } from './loads.js';
import type { PeerName } from './peers.js';

export interface Measured {
  readonly rate: number;
  readonly p99?: number;
  readonly beside?: number;
  /** CPU time of the process, and of the whole machine, for each unit of work. */
  readonly process: number;
  readonly machine: number;
}
/** By load and peer, one of each round. */
export type Results = ReadonlyMap<LoadName, ReadonlyMap<PeerName, readonly Measured[]>>;

/** What is counted once, and not in rounds. */
export interface Counted {
  readonly systemCalls: Readonly<Partial<Record<PeerName, number>>>;
  readonly idle: Readonly<Partial<Record<PeerName, { readonly bytes: number; readonly pipes: number }>>>;
}

export interface Figure {
  readonly work: string;
  readonly reach: number;
  readonly aim?: number;
  /** Default: at least. */
  readonly atMost?: true;
  readonly digits?: number;
  value(results: Results, counted: Counted): number | undefined;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

type Key = 'rate' | 'p99' | 'beside' | 'process' | 'machine';
export function ratio(
  results: Results,
  load: LoadName,
  peer: PeerName,
  to: PeerName,
  key: Key = 'rate',
  of: (ratios: readonly number[]) => number = median,
): number | undefined {
  const [ours, theirs] = [results.get(load)?.get(peer), results.get(load)?.get(to)];
  const rounds = Math.min(ours?.length ?? 0, theirs?.length ?? 0);
  if (!ours || !theirs || rounds === 0) return undefined;
  return of(
    Array.from({ length: rounds }, (_, round) => (ours[round]?.[key] as number) / (theirs[round]?.[key] as number)),
  );
}

const to = (
  work: string,
  load: LoadName,
  other: PeerName,
  reach: number,
  aim: number,
  { peer = 'ours' as PeerName, key = 'rate' as Key } = {},
): Figure => ({
  work,
  reach,
  aim,
  ...((key === 'p99' || key === 'machine') && { atMost: true }),
  value: (results) => ratio(results, load, peer, other, key),
});

export const figures: readonly Figure[] = [
  to('bulk, 1 connection, to HAProxy', 'bulk1', 'haproxy', 1.18, 1.35),
  to('bulk, 8 connections, to HAProxy', 'bulk8', 'haproxy', 1.18, 1.3),
  to('bulk, 64 connections, to HAProxy', 'bulk64', 'haproxy', 1.15, 1.3),
  to('bulk, 1 connection, to HAProxy with 1 MiB pipes', 'bulk1', 'haproxy1M', 1.02, 1.12),
  to('bulk, 8 connections, to HAProxy with 1 MiB pipes', 'bulk8', 'haproxy1M', 1.02, 1.12),
  to('bulk, 64 connections, to HAProxy with 1 MiB pipes', 'bulk64', 'haproxy1M', 1.02, 1.12),
  to('bulk, 1 connection, to forwarding', 'bulk1', 'forwarding', 0.58, 0.75),
  to('bulk, 8 connections, to forwarding', 'bulk8', 'forwarding', 0.75, 0.85),
  to('bulk, 64 connections, to forwarding', 'bulk64', 'forwarding', 0.65, 0.77),
  to('bulk, 8 connections, cheap end points, to HAProxy', 'cheap8', 'haproxy', 1.4, 1.6),
  to('bulk, 8 connections, to nginx stream', 'bulk8', 'nginx', 1.5, 2),
  to('bulk, 8 connections, to Node a.pipe(b)', 'bulk8', 'node', 3, 4),
  to('CPU of the whole machine per GB, 1 connection, to HAProxy', 'bulk1', 'haproxy', 0.95, 0.8, { key: 'machine' }),
  to('CPU of the whole machine per GB, 8 connections, to HAProxy', 'bulk8', 'haproxy', 0.95, 0.8, { key: 'machine' }),
  to('CPU of the whole machine per GB, 64 connections, to HAProxy', 'bulk64', 'haproxy', 0.95, 0.8, { key: 'machine' }),
  to('short connections, to HAProxy', 'short64', 'haproxy', 1.15, 1.3),
  to('short connections, to Node a.pipe(b)', 'short64', 'node', 2.8, 4),
  {
    work: 'system calls per short connection',
    reach: 13,
    aim: 9,
    atMost: true,
    digits: 1,
    value: (_, { systemCalls }) => systemCalls.ours,
  },
  to('round trips, 64 connections, to HAProxy', 'rr64', 'haproxy', 1.2, 1.4),
  to('round trips, 1 connection, to HAProxy', 'rr1', 'haproxy', 1.6, 1.9),
  to('p99 of round trips, 64 connections, to HAProxy', 'rr64', 'haproxy', 0.95, 0.8, { key: 'p99' }),
  {
    work: 'CPU of the process per paced round trip, to epoll, which never yields; worst round',
    reach: 1.1,
    atMost: true,
    value: (results) => ratio(results, 'paced', 'ours', 'epoll', 'process', (ratios) => Math.max(...ratios)),
  },
  {
    work: 'resident KB per idle connection of 8,000',
    reach: 0.5,
    aim: 0.25,
    atMost: true,
    value: (_, { idle }) => idle.ours && idle.ours.bytes / 1000,
  },
  {
    work: 'pipes held by 8,000 idle connections',
    reach: 0,
    aim: 0,
    atMost: true,
    digits: 0,
    value: (_, { idle }) => idle.ours?.pipes,
  },
  to('round trips of 64 connections beside a bulk flow, to HAProxy', 'mixed', 'haproxy', 1.5, 2),
  to('that bulk flow, to HAProxy', 'mixed', 'haproxy', 1.05, 1.15, { key: 'beside' }),
  to('decisions, to relay: true', 'short64', 'ours', 0.6, 0.85, { peer: 'decide' }),
  to('listener, connectTransparent and relay(), to Node a.pipe(b)', 'short64', 'node', 1, 1.5, { peer: 'listener' }),
  to('uring-splice: bulk, 8 connections, to HAProxy', 'bulk8', 'haproxy', 0.95, 1.1, { peer: 'uringSplice' }),
];
