/**
 * createTransparentServer(): connections that were meant for somebody else. With a listener each is a TransparentSocket;
 * with `relay` each is accepted, connected and relayed by the relay thread, and JavaScript only decides, or not even that.
 */
import { EventEmitter } from 'node:events';
import { type AddressInfo, createServer, isIP, type Server, type ServerOpts, Socket } from 'node:net';
import { checkPort } from './connect.js';
import { checkMilliseconds, checkOptions, invalidType, invalidValue, outOfRange } from './errors.js';
import { type Acceptor, acceptFlows } from './flows.js';
import { type InstalledRules, installIntercept } from './intercept/install.js';
import { OWN_KEEPALIVE_MS } from './intercept/named-sets.js';
import { planIntercept } from './intercept/plan.js';
import { Counter, type NativeRelayLimits, native } from './native.js';
import { bytes, chooseEngine, LIMITS, limits, newCounters, type Relay, type RelayLimits, setOwner } from './relay.js';
import { relayThread } from './thread.js';
import type { Endpoint, Engine, Flow, InterceptOptions, RelayDecision, RelayStats, RepairReport } from './types.js';

export interface TransparentServerOptions extends ServerOpts, RelayLimits {
  /**
   * The rules that bring connections here: live from 'listening' to 'close'. `{}` installs the divert part alone, for
   * listeners on foreign addresses. Omitted: the administrator's own rules deliver.
   */
  readonly intercept?: InterceptOptions;
  /**
   * `true`: relay every connection to its original destination from its client's address, without any JavaScript.
   * A function decides for each connection.
   */
  readonly relay?: true | ((flow: Flow) => RelayDecision | Promise<RelayDecision>);
  /** Path of the network namespace to work in, e.g. /run/netns/router. */
  readonly netns?: string;
  readonly engine?: Engine | 'auto';
  /**
   * With `relay`: so many threads accept (SO_REUSEPORT) and relay, each connection on one of them. Default 1, which measured
   * best where the end points share two CPUs with it; beyond, up to one for each CPU that has nothing else to do.
   */
  readonly threads?: number;
  /** After `close()`, relays that have not ended by then are reset. Default: they are waited for. */
  readonly drainTimeoutMs?: number;
  /** For the relay's own connections. Default: the kernel's (net.ipv4.tcp_syn_retries, about two minutes). */
  readonly connectTimeoutMs?: number;
}

/** A net.Socket that knows whom its client meant to reach. */
export type TransparentSocket = Socket & { readonly originalDestination: Endpoint };

export interface ListenOptions {
  readonly port?: number;
  readonly host?: string;
  readonly backlog?: number;
  readonly ipv6Only?: boolean;
  readonly reusePort?: boolean;
  readonly signal?: AbortSignal;
}

export interface TransparentServerEvents {
  listening: [];
  connection: [socket: TransparentSocket];
  /** A `relay` function decided to relay this flow. */
  relay: [relay: Relay, flow: Flow];
  /** Somebody else had changed the rules, and they are again as they were. */
  repaired: [report: RepairReport];
  error: [error: Error];
  drop: [data: object | undefined];
  close: [];
}

const OPTIONS = [
  'intercept',
  'relay',
  'netns',
  'engine',
  'threads',
  'drainTimeoutMs',
  'connectTimeoutMs',
  ...LIMITS,
  'allowHalfOpen',
  'pauseOnConnect',
  'noDelay',
  'keepAlive',
  'keepAliveInitialDelay',
  'highWaterMark',
];

/** SYNs wait here while we are busy; the kernel cuts it to net.core.somaxconn. A short queue means SYN cookies. */
const BACKLOG = 4096;
const MOST_THREADS = 128;

/**
 * A server for connections that were meant for somebody else.
 *
 * ```ts
 * createTransparentServer({ intercept: { tcp: [80] } }, (socket) => {
 *   console.log(`${socket.remoteAddress} wanted ${socket.originalDestination.address}`);
 * }).listen(50080);
 * ```
 *
 * @throws {TypeError | RangeError} for options that cannot be meant
 */
export function createTransparentServer(
  options: TransparentServerOptions = {},
  listener?: (socket: TransparentSocket) => void,
): TransparentServer {
  return new TransparentServer(options, listener);
}

/** Has net.Server's face. Emits what TransparentServerEvents lists. */
export class TransparentServer extends EventEmitter<TransparentServerEvents> {
  /** What is installed, from 'listening' to 'close', when `intercept` was given. */
  rules: InstalledRules | undefined;

  readonly #options: TransparentServerOptions;
  readonly #engine: Engine;
  readonly #limits: NativeRelayLimits;
  readonly #counters = newCounters();
  #state: 'idle' | 'starting' | 'listening' | 'closing' = 'idle';
  #referenced = true;
  #address: Endpoint | undefined;
  #acceptor: Acceptor | undefined;
  /** Connections that the rules must outlive: sockets, and relays made of them. */
  #open = 0;
  #whenDrained: (() => void) | undefined;

  constructor(options: TransparentServerOptions, listener?: (socket: TransparentSocket) => void) {
    super();
    if (typeof options !== 'object' || options === null) throw invalidType('options', 'an object', options);
    checkOptions('createTransparentServer options', options, OPTIONS);
    const { relay, intercept } = options;
    if (relay !== undefined && relay !== true && typeof relay !== 'function')
      throw invalidType('relay', 'true or a function', relay);
    if (listener !== undefined && typeof listener !== 'function') throw invalidType('listener', 'a function', listener);
    if (intercept !== undefined) planIntercept({ ...intercept, port: 1 });
    const { threads = 1, drainTimeoutMs } = options;
    if (!Number.isInteger(threads) || threads < 1 || threads > MOST_THREADS)
      throw outOfRange('threads', `an integer from 1 to ${MOST_THREADS}`, threads);
    if (threads > 1 && relay === undefined) throw invalidValue('threads', '1 without relay', threads);
    if (drainTimeoutMs !== undefined) checkMilliseconds('drainTimeoutMs', drainTimeoutMs);
    this.#limits = limits(options);
    this.#engine = chooseEngine(options.engine);
    this.#options = options;
    if (listener) this.on('connection', listener);
  }

  get listening(): boolean {
    return this.#state === 'listening';
  }

  /**
   * `listen(50080)`: on every address, both families. `listen(2021, '10.10.2.2')`: on a foreign address: it accepts what is
   * routed through this host to there. Equivalent to: socket; setsockopt IP_TRANSPARENT; bind; listen.
   */
  listen(port?: number, host?: string, backlog?: number, listener?: () => void): this;
  listen(port?: number, host?: string, listener?: () => void): this;
  listen(port?: number, listener?: () => void): this;
  listen(options: ListenOptions, listener?: () => void): this;
  listen(...args: (number | string | ListenOptions | (() => void) | undefined)[]): this {
    if (this.#state !== 'idle')
      throw Object.assign(new Error('The server is listening already'), { code: 'ERR_SERVER_ALREADY_LISTEN' });
    const listener = args.find((arg) => typeof arg === 'function');
    const [first, host, backlog] = args.filter((arg) => typeof arg !== 'function');
    const options = (
      typeof first === 'object'
        ? first
        : { port: first, ...(typeof host === 'string' && { host }), ...(typeof backlog === 'number' && { backlog }) }
    ) as ListenOptions;
    checkPort('port', options.port ?? 0, 0);
    if (options.host !== undefined && isIP(options.host) === 0)
      throw invalidValue('host', 'an IP address (names are not looked up)', options.host);
    if (listener) this.once('listening', listener);
    options.signal?.addEventListener('abort', () => this.close(), { once: true });
    this.#state = 'starting';
    this.#start(options).then(
      () => this.#started(),
      (error: Error) => {
        this.#state = 'idle';
        this.emit('error', error);
      },
    );
    return this;
  }

  /** Like net.Server's: `{ address, family, port }`, or null. */
  address(): AddressInfo | null {
    if (!this.#address) return null;
    const { address, family, port } = this.#address;
    return { address, family: family === 'ipv4' ? 'IPv4' : 'IPv6', port };
  }

  /** Takes no more connections; when those that are open have ended, the rules go, and 'close' is emitted. */
  close(callback?: (error?: Error) => void): this {
    if (this.#state === 'idle') {
      const error = Object.assign(new Error('The server is not running'), { code: 'ERR_SERVER_NOT_RUNNING' });
      if (callback) process.nextTick(callback, error);
      return this;
    }
    if (callback) this.once('close', callback);
    const starting = this.#state === 'starting';
    if (this.#state === 'closing') return this;
    this.#state = 'closing';
    if (!starting) this.#stop();
    return this;
  }

  ref(): this {
    this.#referenced = true;
    this.#acceptor?.ref();
    return this;
  }

  unref(): this {
    this.#referenced = false;
    this.#acceptor?.unref();
    return this;
  }

  getConnections(callback: (error: Error | null, count: number) => void): this {
    process.nextTick(callback, null, this.#open + Number(this.#counters[Counter.connectionsOpen]));
    return this;
  }

  /** Totals of the connections that this server relays, read from memory that the relay thread writes. */
  stats(): RelayStats {
    const count = (index: number) => Number(this.#counters[index]);
    return {
      connections: { open: count(Counter.connectionsOpen), total: count(Counter.connectionsTotal) },
      ...bytes(this.#counters),
      spliced: this.#counters[Counter.spliced] as bigint,
      copied: this.#counters[Counter.copied] as bigint,
      connectErrors: count(Counter.connectErrors),
      acceptErrors: count(Counter.acceptErrors),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === 'idle') return;
    await new Promise<void>((resolve) => this.close(() => resolve()));
  }

  // ---- start and stop ---------------------------------------------------------------------------------------------------

  async #start(options: ListenOptions): Promise<void> {
    const { intercept, netns, relay } = this.#options;
    const fds = this.#openListeners(options);
    try {
      const address = native.socketAddress(fds[0] as number);
      const wildcard = options.host === undefined || options.host === '0.0.0.0' || options.host === '::';
      if (intercept)
        this.rules = await installIntercept({
          ...intercept,
          port: address.port,
          ...(!wildcard && { address: address.address }),
          ...(netns !== undefined && { netns }),
        });
      this.rules?.on('repaired', (report) => this.emit('repaired', report));
      this.rules?.on('error', (error) => this.emit('error', error));
      this.#acceptor =
        relay === undefined ? await this.#acceptInNode(fds.pop() as number) : this.#acceptInThreads(fds, relay);
      this.#address = address;
    } catch (error) {
      for (const fd of fds) native.closeDescriptor(fd);
      await this.rules?.uninstall();
      this.rules = undefined;
      throw error;
    }
    if (!this.#referenced) this.#acceptor.unref();
  }

  #started(): void {
    // close() may have been called while the rules were being installed.
    if (this.#state === 'closing') {
      this.#stop();
      return;
    }
    this.#state = 'listening';
    this.emit('listening');
  }

  /** One for each thread, all on the same port. */
  #openListeners(options: ListenOptions): number[] {
    const { threads = 1 } = this.#options;
    const fds: number[] = [];
    try {
      fds.push(this.#openListener({ ...options, ...(threads > 1 && { reusePort: true }) }));
      const { address: host, port } = native.socketAddress(fds[0] as number);
      while (fds.length < threads) fds.push(this.#openListener({ ...options, host, port, reusePort: true }));
      return fds;
    } catch (error) {
      for (const fd of fds) native.closeDescriptor(fd);
      throw error;
    }
  }

  #openListener({ host, port = 0, backlog = BACKLOG, ipv6Only = false, reusePort = false }: ListenOptions): number {
    const { netns, intercept } = this.#options;
    const open = (address: string) =>
      native.openListener({
        address,
        port,
        backlog,
        transparent: true,
        v6Only: ipv6Only,
        reusePort,
        ...(netns !== undefined && { netns }),
      });
    if (host !== undefined) return open(host);
    if (intercept?.families && !intercept.families.includes('ipv6')) return open('0.0.0.0');
    try {
      return open('::');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAFNOSUPPORT') return open('0.0.0.0');
      throw error;
    }
  }

  /** No new connections; those that are open go on, and need the rules until their end. */
  #stop(): void {
    this.#acceptor?.stop(() => {
      const finish = async () => {
        try {
          await this.rules?.uninstall();
        } catch (error) {
          this.emit('error', error as Error);
        }
        this.rules = undefined;
        this.#acceptor = undefined;
        this.#address = undefined;
        this.#state = 'idle';
        this.emit('close');
      };
      if (this.#open === 0) void finish();
      else this.#whenDrained = finish;
    });
  }

  #retain(): () => void {
    this.#open++;
    let released = false;
    return () => {
      if (released) return;
      released = true;
      if (--this.#open > 0) return;
      this.#whenDrained?.();
      this.#whenDrained = undefined;
    };
  }

  /** The rules forget a connection of this host itself of which nothing is heard for long. */
  get #ownHost(): boolean {
    return this.#options.intercept?.ownHost !== undefined;
  }

  // ---- accepted by Node: sockets ----------------------------------------------------------------------------------------

  #acceptInNode(fd: number): Promise<Acceptor> {
    const server: Server = createServer(this.#options);
    server.on('connection', (socket) => this.#handOver(socket));
    server.on('drop', (data) => this.emit('drop', data));
    return new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen({ fd }, () => {
        server.off('error', reject);
        server.on('error', (error) => this.emit('error', error));
        resolve({ stop: (done) => server.close(done), ref: () => server.ref(), unref: () => server.unref() });
      });
    });
  }

  #handOver(socket: Socket): void {
    const originalDestination = endpointOf(socket.localAddress ?? '', socket.localPort ?? 0);
    Object.defineProperty(socket, 'originalDestination', { value: originalDestination, enumerable: true });
    const { keepAliveInitialDelay: delay = OWN_KEEPALIVE_MS } = this.#options;
    if (this.#ownHost) socket.setKeepAlive(true, Math.min(delay, OWN_KEEPALIVE_MS));
    const release = this.#retain();
    socket.once('close', release);
    setOwner(socket, () => this.#retain());
    this.emit('connection', socket as TransparentSocket);
  }

  // ---- accepted by the relay thread -------------------------------------------------------------------------------------

  /** Takes the descriptors out of the list as they change hands. */
  #acceptInThreads(fds: number[], decide: NonNullable<TransparentServerOptions['relay']>): Acceptor {
    const acceptors: Acceptor[] = [];
    try {
      while (fds[0] !== undefined) {
        acceptors.push(this.#acceptInThread(fds[0], acceptors.length, decide));
        fds.shift();
      }
    } catch (error) {
      for (const acceptor of acceptors) acceptor.stop(() => {});
      throw error;
    }
    return {
      stop(done) {
        let left = acceptors.length;
        for (const acceptor of acceptors) acceptor.stop(() => --left === 0 && done());
      },
      ref() {
        for (const acceptor of acceptors) acceptor.ref();
      },
      unref() {
        for (const acceptor of acceptors) acceptor.unref();
      },
    };
  }

  #acceptInThread(fd: number, index: number, decide: NonNullable<TransparentServerOptions['relay']>): Acceptor {
    const { netns, connectTimeoutMs, drainTimeoutMs, allowHalfOpen = false, pauseOnConnect = false } = this.#options;
    const mark = this.rules?.plan.socketMark;
    return acceptFlows({
      fd,
      thread: relayThread({ netns, engine: this.#engine, index }),
      decide,
      engine: this.#engine,
      counters: this.#counters,
      limits: {
        ...this.#limits,
        ...(this.#ownHost && { keepAliveMs: Math.min(this.#limits.keepAliveMs || OWN_KEEPALIVE_MS, OWN_KEEPALIVE_MS) }),
      },
      ...(drainTimeoutMs !== undefined && { drainTimeoutMs }),
      upstream: {
        ...(mark !== undefined && { mark }),
        ...(connectTimeoutMs !== undefined && { timeoutMs: connectTimeoutMs }),
      },
      onSocket: (handed) => {
        // `pauseOnCreate` is what net.Server gives its own sockets; Node's types leave it out.
        const options = { fd: handed, readable: true, writable: true, allowHalfOpen, pauseOnCreate: pauseOnConnect };
        this.#handOver(new Socket(options));
      },
      onRelay: (relay, flow) => this.emit('relay', relay, flow),
      onError: (error) => this.emit('error', error),
    });
  }
}

/** IPv4 through a dual-stack socket shows as `::ffff:10.0.0.1`: it is IPv4 all the same. */
function endpointOf(address: string, port: number): Endpoint {
  const plain = address.startsWith('::ffff:') && isIP(address.slice(7)) === 4 ? address.slice(7) : address;
  return { family: isIP(plain) === 4 ? 'ipv4' : 'ipv6', address: plain, port };
}
