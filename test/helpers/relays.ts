/** What tests of the native relay share: a thread with its events as promises, peers over loopback, byte streams with a hash. */
import { createCipheriv, createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readlinkSync } from 'node:fs';
import * as net from 'node:net';
import {
  Counter,
  type NativeConnectOptions,
  type NativeDecision,
  type NativeRelayEvent,
  type NativeRelayLimits,
  native,
} from '../../src/native.js';
import type { Engine } from '../../src/types.js';
import { settled } from './wait.js';

export { until, within } from './wait.js';
export { native };

native.setErrorFactory((failure) => Object.assign(new Error(`${failure.code}`), failure));

export type FlowEvent = Extract<NativeRelayEvent, { kind: 'flow' }>;
export type EndedEvent = Extract<NativeRelayEvent, { kind: 'ended' }>;

/** What a test has opened; closeOpened() closes it. */
export const opened = new Set<() => void>();
export function closeOpened(): void {
  for (const close of opened) close();
  opened.clear();
}

export const newCounters = () => new BigUint64Array(new ArrayBuffer(Counter.length * 8));

/** A relay thread whose events can be waited for. */
export class Relays {
  readonly events: NativeRelayEvent[] = [];
  readonly thread;
  readonly engine: Engine;
  onFlow: (flow: FlowEvent) => void = () => {};
  #waiting: (() => void)[] = [];

  constructor({ engine = 'epoll' as Engine, ...options }: { netns?: string; engine?: Engine } = {}) {
    this.engine = engine;
    const waitsBy = engine.startsWith('uring') ? 'uring' : 'epoll';
    this.thread = new native.RelayThread({ ...options, engine: waitsBy }, (events) => {
      for (const event of events) {
        this.events.push(event);
        if (event.kind === 'flow') this.onFlow(event);
      }
      for (const resume of this.#waiting.splice(0)) resume();
    });
    this.thread.ref();
    opened.add(() => this.stop());
  }

  /** The first event of this kind, past or to come, that is about `id` (of a flow, a relay, or of a listener). */
  async event<K extends NativeRelayEvent['kind']>(
    kind: K,
    id?: number,
    timeoutMs = 30_000,
  ): Promise<NativeRelayEvent & { kind: K }> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      const found = this.events.find(
        (e) => e.kind === kind && (id === undefined || ('id' in e ? e.id === id : e.server === id)),
      );
      if (found) return found as NativeRelayEvent & { kind: K };
      if (Date.now() >= end)
        throw new Error(`no ${kind} event in ${timeoutMs} ms; had ${JSON.stringify(this.events, big)}`);
      let resume = () => {};
      const woken = new Promise<void>((resolve) => {
        resume = resolve;
        this.#waiting.push(resolve);
      });
      const timer = setTimeout(() => resume(), end - Date.now());
      await woken;
      clearTimeout(timer);
    }
  }

  /** A listener on loopback whose flows are decided by `decide`. */
  listen(
    decide: (flow: FlowEvent) => NativeDecision | undefined,
    { counters = newCounters(), engine = this.engine, address = '127.0.0.1' } = {},
  ) {
    const fd = native.openListener({ address, port: 0, backlog: 4096, transparent: false });
    const { port } = native.socketAddress(fd);
    const id = this.thread.accept({ fd, decide: true, engine, upstream: { from: 'proxy' }, counters });
    this.onFlow = (flow) => {
      const decision = decide(flow);
      if (decision) this.thread.decide(flow.id, decision, decision.kind === 'relay' ? newCounters() : undefined);
    };
    return { id, port, counters };
  }

  /** The usual case: everything that comes is relayed to a port of loopback. */
  relayTo(port: number, engine: Engine, options: NativeRelayLimits & Partial<NativeConnectOptions> = {}) {
    return this.listen(() => ({ kind: 'relay', engine, address: '127.0.0.1', port, ...options }), { engine });
  }

  stop() {
    this.thread.stop();
    this.thread.unref();
  }
}

export const big = (_key: string, value: unknown) => (typeof value === 'bigint' ? `${value}` : value);

/** A server on loopback; connections stay half-open until their handler ends them. */
export async function serve(
  handler: (socket: net.Socket) => void,
  options: net.ServerOpts = {},
): Promise<{ port: number; server: net.Server; close(): void }> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer({ allowHalfOpen: true, ...options }, (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => {});
    handler(socket);
  });
  const close = () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  opened.add(close);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: (server.address() as net.AddressInfo).port, server, close };
}

/** Reads and forgets. */
export const sink = () => serve((socket) => void socket.resume().on('end', () => socket.destroy()));
export const echo = () => serve((socket) => void socket.pipe(socket));

export async function dial(port: number): Promise<net.Socket> {
  const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const close = () => socket.destroy();
  opened.add(close);
  socket.once('close', () => opened.delete(close));
  await once(socket, 'connect');
  socket.on('error', () => {}); // endOf() and the iterators tell
  return socket;
}

/** How a connection to a port ends, which may be reset before it is told to be there. */
export const dialToEnd = (port: number) => endOf(net.connect({ port, host: '127.0.0.1', allowHalfOpen: true }));

/** A connection between two sockets of this process. */
export async function connected(): Promise<[net.Socket, net.Socket]> {
  let accepted: (socket: net.Socket) => void;
  const other = new Promise<net.Socket>((resolve) => {
    accepted = resolve;
  });
  const server = await serve((socket) => accepted(socket), { pauseOnConnect: true });
  const socket = await dial(server.port);
  const pair: [net.Socket, net.Socket] = [socket, await other];
  server.server.close();
  return pair;
}

/** A listening port that answers nothing any more: its backlog is full. */
export async function fullBacklog() {
  const fd = native.openListener({ address: '127.0.0.1', port: 0, backlog: 0, transparent: false });
  const { port } = native.socketAddress(fd);
  const close = () => native.closeDescriptor(fd);
  opened.add(close);
  const filling = await dial(port);
  return {
    port,
    filling,
    /** The descriptor, for who wants to accept after all. */
    take() {
      opened.delete(close);
      return fd;
    },
  };
}

/** A descriptor as it comes from Node: our own duplicate of a socket that JavaScript then gives up. */
export function takeOver(socket: net.Socket): number {
  const fd = native.duplicate((socket as unknown as { _handle: { fd: number } })._handle.fd);
  socket.destroy();
  return fd;
}

/** Waits until no more bytes of the client go anywhere. */
export const stalls = (counters: BigUint64Array) => settled(() => counters[Counter.bytesFromClient]);

/** How a relay ended, and after how many bytes each way. */
export const ended = (event: EndedEvent) => [event.reason, event.bytesFromClient, event.bytesFromServer];

/**
 * Hands every chunk on until the end of stream; rejects with the error of a socket that is reset. (An async iterator would
 * destroy the socket at the end, and with it the other direction.)
 */
function read(socket: net.Socket, take: (chunk: Buffer) => void): Promise<void> {
  socket.on('data', take).resume();
  return new Promise((resolve, reject) => socket.once('end', resolve).once('error', reject));
}

export async function readAll(socket: net.Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  await read(socket, (chunk) => chunks.push(chunk));
  return Buffer.concat(chunks);
}

/** `'end'`, or the code of the error that ended the socket. */
export function endOf(socket: net.Socket): Promise<string> {
  socket.resume();
  return new Promise((resolve) => {
    socket.once('end', () => resolve('end'));
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'error'));
  });
}

/** Writes `size` pseudo-random bytes in chunks of random sizes, respecting back-pressure; gives their hash. */
export async function pour(socket: net.Socket, size: number, seed: number, maxChunk = 300_000): Promise<string> {
  const stream = createCipheriv('aes-128-ctr', Buffer.alloc(16, seed), Buffer.alloc(16));
  const hash = createHash('sha1');
  for (let left = size; left > 0; ) {
    const chunk = stream.update(Buffer.alloc(Math.min(left, 1 + Math.floor(Math.random() * maxChunk))));
    left -= chunk.length;
    hash.update(chunk);
    if (!socket.write(chunk)) await once(socket, 'drain');
  }
  return hash.digest('hex');
}

/** The same, and then ends the socket. */
export async function pourAll(socket: net.Socket, size: number, seed: number): Promise<string> {
  const hash = await pour(socket, size, seed);
  socket.end();
  return hash;
}

/** Reads to the end of stream; gives the number of bytes and their hash. */
export async function drain(socket: net.Socket): Promise<{ bytes: number; hash: string }> {
  const hash = createHash('sha1');
  let bytes = 0;
  await read(socket, (chunk) => {
    hash.update(chunk);
    bytes += chunk.length;
  });
  return { bytes, hash: hash.digest('hex') };
}

/**
 * Milliseconds for a message there and back, again and again, through a relay and, in turn with it, without: what a crowded
 * machine costs it costs both.
 */
export async function roundTrips(rounds: number, message: Buffer, relayed: net.Socket, direct: net.Socket) {
  const took: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++)
    for (const [index, socket] of [relayed, direct].entries()) {
      const sent = performance.now();
      socket.setNoDelay().write(message);
      await once(socket, 'data');
      took[index]?.push(performance.now() - sent);
    }
  const [ours, without] = took.map((each) => {
    const sorted = each.sort((a, b) => a - b);
    return { half: sorted[rounds / 2] as number, most: sorted[(rounds * 9) / 10] as number };
  }) as [Quantiles, Quantiles];
  return { ours, without };
}
interface Quantiles {
  readonly half: number;
  readonly most: number;
}

/** What a descriptor of a process is: `socket:[123]`, `pipe:[123]`, `anon_inode:[eventfd]`, or a path. */
export function descriptors(pid: number | 'self' = 'self'): Map<string, string> {
  const found = new Map<string, string>();
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      found.set(fd, readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      // the directory that was being read
    }
  }
  return found;
}

/** Node leaves files open that a terminated worker thread was just opening, as tsx does to keep what it has compiled. */
export const isFile = (kind: string) => kind.startsWith('/') && !kind.startsWith('/dev/');

/** What a leak would show in: no files. */
export function resources(pid: number | 'self' = 'self') {
  const kinds = [...descriptors(pid).values()].filter((kind) => !isFile(kind));
  return {
    descriptors: kinds.length,
    pipes: kinds.filter((kind) => kind.startsWith('pipe:')).length,
    threads: readdirSync(`/proc/${pid}/task`).length,
  };
}
