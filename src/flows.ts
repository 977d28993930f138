/**
 * Connections that the relay thread accepts. With a function to decide, each is a flow until it has: then it is relayed,
 * reset, closed, or handed to JavaScript as a socket. Without one, JavaScript hears nothing of them.
 */
import { nativeConnectOptions } from './connect.js';
import { checkOptions, errorFromFailure, invalidValue } from './errors.js';
import type { NativeDecision, NativeRelayEvent, NativeRelayLimits } from './native.js';
import { bytes, ended, newCounters, type Relay } from './relay.js';
import type { RelayThread } from './thread.js';
import type { Engine, Flow, RelayDecision } from './types.js';

export type Decide = (flow: Flow) => RelayDecision | Promise<RelayDecision>;

export interface FlowOptions {
  /** A listening descriptor; it belongs to the relay thread from here on, unless this throws. */
  readonly fd: number;
  readonly thread: RelayThread;
  /** `true`: relay everything to its original destination, from its client's address. */
  readonly decide: true | Decide;
  /** Conntrack knows where the clients meant to go. */
  readonly redirected: boolean;
  /** Whose address the servers see where no decision says so; `proxy`: no decision may say otherwise. */
  readonly from: 'client' | 'proxy';
  readonly engine: Engine;
  /** Totals of all its connections. */
  readonly counters: BigUint64Array;
  readonly limits: NativeRelayLimits;
  /** After stop(), what is still open then is reset. */
  readonly drainTimeoutMs?: number;
  /** Of the connections to the servers. */
  readonly upstream: { readonly mark?: number; readonly timeoutMs?: number };
  onSocket(fd: number): void;
  onRelay(relay: Relay, flow: Flow): void;
  onError(error: Error): void;
}

/** What accepts: the relay thread here, a net.Server in server.ts. */
export interface Acceptor {
  /** No new connections; `done` when the last of those that are open has ended. */
  stop(done: () => void): void;
  ref(): void;
  unref(): void;
}

export function acceptFlows(options: FlowOptions): Acceptor {
  const { fd, thread, decide, engine, counters, limits, upstream } = options;
  const id = thread.native.accept({
    fd,
    decide: decide !== true,
    redirected: options.redirected,
    engine,
    upstream: { from: options.from, ...upstream },
    counters,
    ...limits,
  });
  let release: (() => void) | undefined = thread.hold();
  let stopped: (() => void) | undefined;
  thread.handle(id, (event) => {
    if (event.kind === 'flow' && decide !== true) void decideFlow(options, event, decide);
    else if (event.kind === 'acceptFailed') options.onError(errorFromFailure(event.failure));
    else if (event.kind === 'closed') {
      thread.forget(id);
      release?.();
      stopped?.();
    }
  });
  return {
    stop(done) {
      stopped = done;
      thread.native.stopAccepting(id, options.drainTimeoutMs);
    },
    ref() {
      release ??= thread.hold();
    },
    unref() {
      release?.();
      release = undefined;
    },
  };
}

async function decideFlow(
  options: FlowOptions,
  { id, source, originalDestination }: Extract<NativeRelayEvent, { kind: 'flow' }>,
  decide: Decide,
): Promise<void> {
  const { thread } = options;
  const peeks: ((data: Buffer) => void)[] = [];
  let isOver = false;
  const closed = ended(thread, id, (event) => {
    if (event.kind === 'peeked') peeks.shift()?.(event.data);
    else if (event.kind === 'socket') options.onSocket(event.fd);
    else if (event.kind === 'ended') {
      isOver = true;
      for (const resolve of peeks.splice(0)) resolve(Buffer.alloc(0));
    }
  });
  const flow: Flow = {
    protocol: 'tcp',
    source,
    originalDestination,
    peek: (size, timeoutMs) =>
      new Promise((resolve) => {
        if (isOver) return resolve(Buffer.alloc(0));
        peeks.push(resolve);
        thread.native.peek(id, size, timeoutMs);
      }),
  };
  try {
    carryOut(options, id, flow, closed, await decide(flow));
  } catch (error) {
    thread.native.decide(id, { kind: 'reset' });
    options.onError(error as Error);
  }
}

function carryOut(
  options: FlowOptions,
  id: number,
  flow: Flow,
  closed: Relay['closed'],
  decision: RelayDecision,
): void {
  const { thread, engine } = options;
  switch (decision.kind) {
    case 'relay': {
      const counters = newCounters();
      thread.native.decide(id, relayDecision(options, flow, decision), counters);
      options.onRelay({ engine, closed, stats: () => bytes(counters), destroy: () => thread.native.destroy(id) }, flow);
      return;
    }
    case 'socket':
    case 'reset':
    case 'close':
      thread.native.decide(id, decision);
      return;
    default:
      throw invalidValue(
        "a decision's kind",
        "'relay', 'socket', 'reset' or 'close'",
        (decision as { kind?: unknown } | undefined)?.kind,
      );
  }
}

function relayDecision(
  { engine, limits, upstream, from: usual }: FlowOptions,
  flow: Flow,
  decision: Extract<RelayDecision, { kind: 'relay' }>,
): NativeDecision {
  checkOptions('a relay decision', decision, ['kind', 'to', 'from', 'sourcePort']);
  const { to = flow.originalDestination, from = usual, sourcePort } = decision;
  if (usual === 'proxy' && from !== 'proxy')
    throw invalidValue(
      "a decision's from",
      "'proxy' with mode 'redirect': answers to foreign addresses are not brought here",
      from,
    );
  const source = from === 'client' ? flow.source : from === 'proxy' ? undefined : from;
  const connect = nativeConnectOptions({
    address: to.address,
    port: to.port,
    ...(source && { localAddress: source.address }),
    // The client's own port is only used when asked for; one that is named is meant.
    ...(source && (from !== 'client' || sourcePort) && source.port > 0 && { localPort: source.port }),
    ...(sourcePort && { sourcePort }),
    ...upstream,
  });
  return { kind: 'relay', engine, ...connect, ...limits };
}
