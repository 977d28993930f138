/** relay(): two sockets handed to the kernel. JavaScript sees neither their bytes nor their events any more, only the end. */
import { isIP, Socket } from 'node:net';
import { tellRelay } from './diagnostics.js';
import { checkMilliseconds, checkOptions, errorFromFailure, invalidType, invalidValue } from './errors.js';
import { Counter, type NativeRelayEvent, type NativeRelayLimits, native } from './native.js';
import { hasSplice, hasUring, needsUring, type RelayThread, relayThread } from './thread.js';
import type { Endpoint, Engine, RelayCounts, RelayResult } from './types.js';

export interface RelayLimits {
  /** End a relay over which no byte went either way for this long (reason `idle`). Default: never. */
  readonly idleTimeoutMs?: number;
  /** The same once one side has sent its end. Default: `idleTimeoutMs`. */
  readonly halfCloseTimeoutMs?: number;
  /**
   * Probe both sides after this long without a byte, and so often: a peer's own keepalive reaches only the proxy.
   * Equivalent to: setsockopt SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL. Default: never.
   */
  readonly keepAliveMs?: number;
  /**
   * How long sent bytes, and keepalive probes, may go unacknowledged before that side is taken for dead (ETIMEDOUT) and
   * the other is reset. Equivalent to: setsockopt TCP_USER_TIMEOUT. Default: the kernel's (net.ipv4.tcp_retries2).
   */
  readonly userTimeoutMs?: number;
}

export interface RelayOptions extends RelayLimits {
  readonly engine?: Engine | 'auto';
}

/** A pair of connections that the relay thread carries bytes between. */
export interface Relay {
  readonly engine: Engine;
  /** Once it has its connection to the server: whether a wanted source port was had. */
  readonly localPortKept?: boolean | undefined;
  /** Never rejects: how it went wrong is in the result. */
  readonly closed: Promise<RelayResult>;
  /** So far, read from memory that the relay thread writes: no call into native code, no copy. */
  stats(): RelayCounts;
  /** Resets both connections. */
  destroy(): void;
}

const ENGINES: readonly (Engine | 'auto')[] = ['auto', 'uring', 'uring-splice', 'epoll', 'copy'];

/**
 * What the relay will run on: `auto` is `uring`, which measured fastest; where io_uring is forbidden or too old, `epoll`; where
 * splice is, `copy`.
 */
export function chooseEngine(wanted: Engine | 'auto' = 'auto'): Engine {
  if (!ENGINES.includes(wanted)) throw invalidValue('engine', ENGINES.map((each) => `'${each}'`).join(' or '), wanted);
  if (!hasSplice()) return 'copy';
  const engine = wanted === 'auto' ? 'uring' : wanted;
  return needsUring(engine) && !hasUring() ? 'epoll' : engine;
}

/** Memory outside V8's heap, which does not move: the relay thread writes into it. */
export function newCounters(): BigUint64Array {
  return new BigUint64Array(new ArrayBuffer(Counter.length * BigUint64Array.BYTES_PER_ELEMENT));
}

/**
 * Takes both sockets over, with what was already read from them, and carries bytes both ways until both sides have ended.
 * Half-close and reset are passed on as they come. The two Socket objects are destroyed (they emit 'close'); the
 * connections live on. What was written to a socket before is sent first.
 *
 * @throws {TypeError} for what is not a connected plain TCP socket (a TLS socket's bytes exist only in this process)
 */
export function relay(client: Socket, server: Socket, options: RelayOptions = {}): Relay {
  checkOptions('relay options', options, ['engine', ...LIMITS]);
  checkSocket('client', client);
  checkSocket('server', server);
  const engine = chooseEngine(options.engine);
  const limit = limits(options);
  const thread = relayThread({ engine });
  const counters = newCounters();
  const retained = retainOwners(client, server);
  const source = endpointOf(client.remoteAddress, client.remotePort);
  const originalDestination = endpointOf(client.localAddress, client.localPort);
  let destroyed = false;
  let id: number | undefined;
  const closed = Promise.all([written(client), written(server)])
    .then(() => {
      if (destroyed) {
        reset(client, server);
        return nothing('destroyed');
      }
      const [clientSide, serverSide] = detach(client, server);
      id = thread.native.relay({
        clientFd: clientSide.fd,
        serverFd: serverSide.fd,
        ...(clientSide.preface && { clientPreface: clientSide.preface }),
        ...(serverSide.preface && { serverPreface: serverSide.preface }),
        engine,
        counters,
        ...limit,
      });
      return ended(thread, id).then(tellRelay(() => ({ engine, source, originalDestination })));
    })
    .catch((error: Error): RelayResult => {
      reset(client, server);
      return { ...nothing('error'), error };
    })
    .finally(() => {
      for (const release of retained) release();
    });
  return {
    engine,
    closed,
    stats: () => counts(counters),
    destroy() {
      destroyed = true;
      if (id !== undefined) thread.native.destroy(id);
    },
  };
}

/** The end of a relay that never began. */
const nothing = (reason: RelayResult['reason']): RelayResult => ({ bytesFromClient: 0n, bytesFromServer: 0n, reason });

export const LIMITS = ['idleTimeoutMs', 'halfCloseTimeoutMs', 'keepAliveMs', 'userTimeoutMs'] as const;

export function limits(options: RelayLimits): NativeRelayLimits {
  const given = LIMITS.filter((name) => options[name] !== undefined);
  for (const name of given) checkMilliseconds(name, options[name]);
  return Object.fromEntries(given.map((name) => [name, options[name]]));
}

export function counts(counters: BigUint64Array): RelayCounts {
  return {
    bytesFromClient: counters[Counter.bytesFromClient] as bigint,
    bytesFromServer: counters[Counter.bytesFromServer] as bigint,
    spliced: counters[Counter.spliced] as bigint,
    copied: counters[Counter.copied] as bigint,
    pipes: Number(counters[Counter.pipes]),
  };
}

/**
 * From a relay's (or flow's) beginning to the one event that ends it; whatever comes before goes to `onEvent`. A flow that
 * becomes a socket never ends here: it lives on in JavaScript.
 */
export function ended(
  thread: RelayThread,
  id: number,
  onEvent: (event: NativeRelayEvent) => void = () => {},
): Promise<RelayResult> {
  const release = thread.hold();
  return new Promise((resolve) => {
    thread.handle(id, (event) => {
      if (event.kind === 'ended' || event.kind === 'socket') {
        thread.forget(id);
        release();
      }
      onEvent(event);
      if (event.kind !== 'ended') return;
      resolve(resultOf(event));
    });
  });
}

export function resultOf({ bytesFromClient, bytesFromServer, reason, failure }: NativeEnded): RelayResult {
  return { bytesFromClient, bytesFromServer, reason, ...(failure && { error: errorFromFailure(failure) }) };
}
type NativeEnded = Extract<NativeRelayEvent, { kind: 'ended' }>;

/** IPv4 through a dual-stack socket shows as `::ffff:10.0.0.1`: it is IPv4 all the same. */
export function endpointOf(address = '', port = 0): Endpoint {
  const plain = address.startsWith('::ffff:') && isIP(address.slice(7)) === 4 ? address.slice(7) : address;
  return { family: isIP(plain) === 4 ? 'ipv4' : 'ipv6', address: plain, port };
}

// ---- Socket -> descriptor -----------------------------------------------------------------------------------------------

/** Who must know that a socket's connection lives on in a relay: the server that accepted it. */
const owners = new WeakMap<Socket, () => () => void>();

/** `retain` is called when the socket goes into a relay; what it gives is called when the relay has ended. */
export function setOwner(socket: Socket, retain: () => () => void): void {
  owners.set(socket, retain);
}

function retainOwners(...sockets: Socket[]): (() => void)[] {
  return sockets.flatMap((socket) => {
    const release = owners.get(socket)?.();
    return release ? [release] : [];
  });
}

function checkSocket(name: string, socket: Socket): void {
  if (!(socket instanceof Socket)) throw invalidType(name, 'a net.Socket', socket);
  if ('encrypted' in socket)
    throw invalidValue(name, 'a plain TCP socket (TLS bytes exist only in this process)', 'a TLSSocket');
  if (socket.connecting || socket.destroyed || descriptorOf(socket) === undefined)
    throw invalidValue(name, 'connected', socket.connecting ? 'connecting' : 'closed');
  if (socket.writableEnded) throw invalidValue(name, 'open for writing', 'ended');
  if (socket.readableEncoding !== null) throw invalidValue(name, 'without setEncoding()', socket.readableEncoding);
}

/** Node has no public way from a Socket to its descriptor; the handle's `fd` is what everybody uses, and only we do here. */
export function descriptorOf(socket: Socket): number | undefined {
  const fd = (socket as unknown as { _handle?: { fd?: number } } | undefined)?._handle?.fd;
  return fd !== undefined && fd >= 0 ? fd : undefined;
}

/** What JavaScript wrote before must be in the kernel before the relay's first byte. */
function written(socket: Socket): Promise<void> {
  socket.pause();
  if (socket.writableLength === 0) return Promise.resolve();
  return new Promise((resolve, reject) => {
    socket.once('close', () => reject(socket.errored ?? new Error('The socket was closed before its data was sent')));
    socket.write('', () => resolve());
  });
}

/**
 * libuv cannot let go of a descriptor: so the relay gets a duplicate, and the Socket is destroyed. That closes the
 * original only: the connection stays, without FIN or RST, so long as the duplicate is open. Nothing is read in between:
 * all of this is one turn of the event loop.
 */
function detach(...sockets: [Socket, Socket]): [Detached, Detached] {
  const originals = sockets.map(descriptorOf);
  const gone = sockets.find((_, index) => originals[index] === undefined);
  if (gone) throw gone.errored ?? new Error('A socket was closed before the relay began');
  return sockets.map((socket, index): Detached => {
    const preface = socket.read() as Buffer | null;
    const fd = native.duplicate(originals[index] as number);
    socket.destroy();
    return { fd, preface };
  }) as [Detached, Detached];
}

interface Detached {
  readonly fd: number;
  readonly preface: Buffer | null;
}

function reset(...sockets: Socket[]): void {
  for (const socket of sockets) if (!socket.destroyed) socket.resetAndDestroy();
}
