/**
 * Connections that the relay thread accepts. With a function to decide, each is a flow until it has: then it is relayed,
 * reset, closed, or handed to JavaScript as a socket. Without one, JavaScript hears nothing of them.
 */
import { isIPv6 } from 'node:net';
import { nativeConnectOptions } from './connect.js';
import { tellRelay, watchSubscribers } from './diagnostics.js';
import { checkOptions, errorFromFailure, invalidValue } from './errors.js';
import type { NativeDecision, NativeFlow, NativeRelayLimits, NativeUpstream } from './native.js';
import { counts, ended, newCounters, type Relay, resultOf } from './relay.js';
import type { RelayThread } from './thread.js';
import type { Engine, Flow, RelayDecision, RelayResult, RelayTarget } from './types.js';

export type Decide = (flow: Flow) => RelayDecision | Promise<RelayDecision>;

export interface FlowOptions {
  /** A listening descriptor; it belongs to the relay thread from here on, unless this throws. */
  readonly fd: number;
  readonly thread: RelayThread;
  /** `true`: relay everything to its original destination. Or one decision for everything. */
  readonly decide: true | RelayTarget | Decide;
  /** Connect to the original destination while `decide` decides. */
  readonly preconnect: boolean;
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
  const { fd, thread, decide, preconnect, from, engine, counters, limits, upstream } = options;
  const decides = typeof decide === 'function';
  const id = thread.native.accept({
    fd,
    decide: decides,
    preconnect,
    redirected: options.redirected,
    engine,
    upstream: { ...(decides || decide === true ? { from } : nativeUpstream(decide, from)), ...upstream },
    counters,
    ...limits,
  });
  // Of what is decided here all is known.
  const unwatch = decides ? undefined : watchSubscribers((wanted) => thread.native.tell(id, wanted));
  let release: (() => void) | undefined = thread.hold();
  let stopped: (() => void) | undefined;
  thread.handle(id, (event) => {
    if (event.kind === 'flow' && decides) void decideFlow(options, event, decide);
    else if (event.kind === 'relayed') tellToEnd(options, event);
    else if (event.kind === 'acceptFailed') options.onError(errorFromFailure(event.failure));
    else if (event.kind === 'closed') {
      thread.forget(id);
      unwatch?.();
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

function tellToEnd({ thread, engine }: FlowOptions, { id, source, originalDestination }: NativeFlow): void {
  const tell = tellRelay(() => ({ engine, source, originalDestination }));
  thread.handle(id, (event) => {
    if (event.kind !== 'ended') return;
    thread.forget(id);
    tell(resultOf(event));
  });
}

async function decideFlow(
  options: FlowOptions,
  { id, source, originalDestination }: NativeFlow,
  decide: Decide,
): Promise<void> {
  const { thread, engine } = options;
  const peeks: ((data: Buffer) => void)[] = [];
  let isOver = false;
  let localPortKept: boolean | undefined;
  let tell = (result: RelayResult) => result;
  const closed = ended(thread, id, (event) => {
    if (event.kind === 'peeked') peeks.shift()?.(event.data);
    else if (event.kind === 'opened') {
      localPortKept = event.localPortKept;
      tell = tellRelay(() => ({ engine, source, originalDestination }));
    } else if (event.kind === 'socket') options.onSocket(event.fd);
    else if (event.kind === 'ended') {
      isOver = true;
      for (const resolve of peeks.splice(0)) resolve(Buffer.alloc(0));
    }
  }).then((result) => tell(result));
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
    carryOut(options, id, flow, closed, () => localPortKept, await decide(flow));
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
  localPortKept: () => boolean | undefined,
  decision: RelayDecision,
): void {
  const { thread, engine } = options;
  switch (decision.kind) {
    case 'relay': {
      const counters = newCounters();
      thread.native.decide(id, relayDecision(options, flow, decision), counters);
      options.onRelay(
        {
          engine,
          get localPortKept() {
            return localPortKept();
          },
          closed,
          stats: () => counts(counters),
          destroy: () => thread.native.destroy(id),
        },
        flow,
      );
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
  decision: RelayTarget,
): NativeDecision {
  checkDecision(decision, usual);
  const { to = flow.originalDestination, from = usual, sourcePort, proxyProtocol } = decision;
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
  return { kind: 'relay', engine, ...connect, ...(proxyProtocol && { proxyProtocol }), ...limits };
}

function checkDecision(decision: RelayTarget, usual: FlowOptions['from']): void {
  checkOptions('a relay decision', decision, ['kind', 'to', 'from', 'sourcePort', 'proxyProtocol']);
  const { from = usual, proxyProtocol } = decision;
  if (![undefined, 1, 2].includes(proxyProtocol)) throw invalidValue('proxyProtocol', '1 or 2', proxyProtocol);
  if (usual === 'proxy' && from !== 'proxy')
    throw invalidValue(
      "a decision's from",
      "'proxy' with mode 'redirect': answers to foreign addresses are not brought here",
      from,
    );
}

/** Whether it can be meant for every connection. */
export function checkTarget(decision: RelayTarget, usual: FlowOptions['from']): void {
  if (decision.kind !== 'relay') throw invalidValue("a fixed decision's kind", "'relay'", decision.kind);
  nativeUpstream(decision, usual);
}

function nativeUpstream(decision: RelayTarget, usual: FlowOptions['from']): NativeUpstream {
  checkDecision(decision, usual);
  const { to, from = usual, sourcePort = 'ephemeral', proxyProtocol } = decision;
  const fixed = typeof from === 'object' ? from : undefined;
  // What each connection brings along is checked, and left out, as any address of the right family.
  const any = { address: isIPv6((to ?? fixed)?.address ?? '') ? '::1' : '127.0.0.1', port: 1 };
  const port = fixed ? fixed.port : sourcePort === 'ephemeral' ? 0 : any.port;
  const connect = nativeConnectOptions({
    address: (to ?? any).address,
    port: (to ?? any).port,
    ...(from !== 'proxy' && { localAddress: (fixed ?? any).address }),
    ...(port > 0 && { localPort: port }),
    ...((!fixed || decision.sourcePort) && { sourcePort }),
  });
  const { address, port: toPort, localAddress, localPort, localPortOptional } = connect;
  return {
    from: from === 'client' ? 'client' : 'proxy',
    ...(to && { address, port: toPort }),
    ...(fixed && localAddress !== undefined && { localAddress }),
    ...(fixed && localPort !== undefined && { localPort }),
    ...(from === 'client' && sourcePort !== 'ephemeral' && { clientPort: true }),
    ...(localPortOptional !== undefined && { localPortOptional }),
    ...(proxyProtocol && { proxyProtocol }),
  };
}
