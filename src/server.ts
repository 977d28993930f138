/**
 * createTransparentServer(): connections that were meant for somebody else. With a listener each is a TransparentSocket;
 * with `relay` each is accepted, connected and relayed by the relay thread, and JavaScript only decides, or not even that.
 */
import { EventEmitter } from 'node:events';
import { type AddressInfo, createServer, type Server, type ServerOpts, Socket } from 'node:net';
import { originalDestination } from './destination.js';
import { checkMilliseconds, checkOptions, invalidType, invalidValue, outOfRange } from './errors.js';
import { type Acceptor, acceptFlows, checkTarget } from './flows.js';
import { installIntercept } from './intercept/install.js';
import { type InstalledRules, leave } from './intercept/installation.js';
import { OWN_KEEPALIVE_MS } from './intercept/named-sets.js';
import type { Owner } from './intercept/owner.js';
import { planIntercept } from './intercept/plan.js';
import { shareDivert } from './intercept/shared.js';
import { BACKLOG, checkListen, isWildcard, type ListenOptions, openListeners } from './listeners.js';
import { Counter, type NativeRelayLimits, native } from './native.js';
import {
  chooseEngine,
  counts,
  endpointOf,
  LIMITS,
  limits,
  newCounters,
  type Relay,
  type RelayLimits,
  setOwner,
} from './relay.js';
import { relayThread, startBroker } from './thread.js';
import type {
  ChangedBy,
  Endpoint,
  Engine,
  Flow,
  InterceptOptions,
  RelayDecision,
  RelayStats,
  RelayTarget,
  RepairReport,
} from './types.js';
import { delivered } from './undelivered.js';

export interface TransparentServerOptions extends ServerOpts, RelayLimits {
  /**
   * The rules that bring connections here: live from 'listening' to 'close'. `{}` installs the divert part alone, for
   * listeners on foreign addresses, and once for all of them in this process. Omitted: the administrator's own rules deliver
   * (TPROXY, REDIRECT or DNAT).
   *
   * With `lifetime: 'persist'` and a `name` a program is replaced by its next version without losing a connection: start that
   * one on another port (`listen(0)`); once it listens it has the rules, and this server emits 'handover', ends its connections
   * in peace, and closes.
   */
  readonly intercept?: InterceptOptions;
  /**
   * `true`: relay every connection to its original destination from its client's address, without any JavaScript.
   * A decision to relay: the same for every connection, without any JavaScript either. A function decides for each.
   */
  readonly relay?: true | RelayTarget | ((flow: Flow) => RelayDecision | Promise<RelayDecision>);
  /**
   * With a function in `relay`: connect to the original destination from the client's address while it decides, so that no
   * time is lost where it decides so; and `flow.peek()` resolves as soon as the server has spoken, which in protocols like
   * SMTP or SSH it does first. Where it decides otherwise, that server has seen a connection that was reset. Default false.
   */
  readonly preconnect?: boolean;
  /** Path of the network namespace to work in, e.g. /run/netns/router. */
  readonly netns?: string;
  /**
   * `broker`: a small child process keeps the privileges that this process has at 'listening', until 'close', and opens the
   * foreign sockets of its relays and of connectTransparent. So the process itself can give them up (`process.setgid`,
   * `process.setuid`). Rules are not repaired then, and their sets not changed any more; they go with the server as ever.
   */
  readonly privileges?: 'own' | 'broker';
  readonly engine?: Engine | 'auto';
  /**
   * With `relay`: so many threads accept (SO_REUSEPORT) and relay, each connection on one of them. Default 1; more are for
   * CPUs that have nothing else to do.
   */
  readonly threads?: number;
  /** After `close()`, relays that have not ended by then are reset. Default: they are waited for, until their last byte has arrived. */
  readonly drainTimeoutMs?: number;
  /** For the relay's own connections. Default: the kernel's (net.ipv4.tcp_syn_retries, about two minutes). */
  readonly connectTimeoutMs?: number;
}

/** A net.Socket that knows whom its client meant to reach. */
export type TransparentSocket = Socket & { readonly originalDestination: Endpoint };

export interface TransparentServerEvents {
  listening: [];
  connection: [socket: TransparentSocket];
  /** A `relay` function decided to relay this flow. */
  relay: [relay: Relay, flow: Flow];
  /** Somebody else had changed the rules, and they are again as they were. */
  repaired: [report: RepairReport];
  /** Another process has taken the rules over: this server takes what was on its way to it, and then closes. */
  handover: [successor: Owner];
  /** Somebody has taken the rules down on purpose (`linux-tproxy down`): nothing new comes by them. */
  uninstalled: [by: ChangedBy | undefined];
  error: [error: Error];
  drop: [data: object | undefined];
  close: [];
}

const OPTIONS = [
  'intercept',
  'relay',
  'netns',
  'privileges',
  'engine',
  'threads',
  'drainTimeoutMs',
  'preconnect',
  'connectTimeoutMs',
  ...LIMITS,
  'allowHalfOpen',
  'pauseOnConnect',
  'noDelay',
  'keepAlive',
  'keepAliveInitialDelay',
  'highWaterMark',
];

/** Handshakes that are under way when the rules go to another process: the kernel repeats a lost answer after 1 and 3 s. */
const HANDSHAKES_MS = 4_000;
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
  /** What ends with the server, last first. */
  #endings: (() => Promise<void> | void)[] = [];

  constructor(options: TransparentServerOptions, listener?: (socket: TransparentSocket) => void) {
    super();
    if (typeof options !== 'object' || options === null) throw invalidType('options', 'an object', options);
    checkOptions('createTransparentServer options', options, OPTIONS);
    const { relay, intercept, privileges = 'own' } = options;
    if (!['own', 'broker'].includes(privileges)) throw invalidValue('privileges', "'own' or 'broker'", privileges);
    if (typeof relay === 'object' && relay !== null) checkTarget(relay, usualSource(intercept));
    else if (relay !== undefined && relay !== true && typeof relay !== 'function')
      throw invalidType('relay', 'true, a function, or a decision to relay', relay);
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
    const { intercept } = this.#options;
    checkListen(options);
    if (intercept)
      planIntercept({ ...intercept, port: 1, ...(!isWildcard(options.host) && { address: options.host }) });
    if (listener) this.once('listening', listener);
    options.signal?.addEventListener('abort', () => this.close(), { once: true });
    this.#state = 'starting';
    this.#start(options).then(
      () => this.#started(),
      (error: Error) => {
        const closing = this.#state === 'closing';
        this.#state = 'idle';
        this.emit('error', error);
        if (closing) this.emit('close');
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

  /**
   * Takes no more connections; when those that are open have ended, the rules go, and 'close' is emitted. With `lifetime:
   * 'persist'` they stay for the next process (see `rules.release`).
   */
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
      engine: this.#engine,
      connections: { open: count(Counter.connectionsOpen), total: count(Counter.connectionsTotal) },
      ...counts(this.#counters),
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
    const { relay, netns, privileges, threads = 1 } = this.#options;
    const { intercept } = this.#options;
    const listeners = openListeners(options, {
      threads,
      netns,
      transparent: intercept?.mode !== 'redirect',
      families: intercept?.families,
      split: relay !== undefined,
    });
    try {
      const address = native.socketAddress(listeners[0]?.[0] as number);
      await this.#install(address);
      this.#acceptor =
        relay === undefined
          ? await this.#acceptInNode(listeners.shift()?.[0] as number, options.backlog)
          : this.#acceptInThreads(listeners, relay);
      if (privileges === 'broker') this.#endings.push(startBroker({ netns, engine: this.#engine, threads }));
      this.#address = address;
    } catch (error) {
      for (const fd of listeners.flat()) native.closeDescriptor(fd);
      await this.#end();
      throw error;
    }
    if (!this.#referenced) this.#acceptor.unref();
  }

  async #install({ address, port }: Endpoint): Promise<void> {
    const { intercept, netns } = this.#options;
    if (!intercept) return;
    const options = {
      ...(this.#keepsPorts && { zone: 'auto' as const }),
      ...intercept,
      port,
      ...(!isWildcard(address) && { address }),
      ...(netns !== undefined && { netns }),
    };
    const divertsOnly = intercept.tcp === undefined && intercept.udp === undefined;
    let uninstall: () => Promise<void>;
    if (divertsOnly) {
      const shared = await shareDivert(options);
      this.rules = shared.rules;
      uninstall = shared.release;
    } else {
      const rules = await installIntercept(options);
      this.rules = rules;
      uninstall = () => leave(rules);
    }
    const { rules } = this;
    const repaired = (report: RepairReport) => this.emit('repaired', report);
    // It goes on all the same: nothing to end the process for.
    const failed = (error: Error) => {
      if (this.listenerCount('error') > 0) this.emit('error', error);
      else process.emitWarning(error);
    };
    const uninstalled = (by: ChangedBy | undefined) => this.emit('uninstalled', by);
    const handover = (successor: Owner) => {
      this.emit('handover', successor);
      // close() may come first, and be through by then.
      setTimeout(() => this.#state === 'listening' && this.close(), HANDSHAKES_MS).unref();
    };
    rules.setMaxListeners(0).on('repaired', repaired).on('error', failed);
    rules.on('uninstalled', uninstalled).on('handover', handover);
    this.#endings.push(async () => {
      rules.off('repaired', repaired).off('error', failed).off('uninstalled', uninstalled).off('handover', handover);
      this.rules = undefined;
      await uninstall();
    });
  }

  async #end(): Promise<void> {
    for (const end of this.#endings.splice(0).reverse()) await end();
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

  /** No new connections; those that are open go on, and need the rules until their end. */
  #stop(): void {
    this.#acceptor?.stop(() => {
      const finish = async () => {
        try {
          const { netns, drainTimeoutMs: withinMs } = this.#options;
          if (this.rules) await delivered(this.rules, { netns, withinMs });
          await this.#end();
        } catch (error) {
          this.emit('error', error as Error);
        }
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

  /** Both sides of every connection have the same ports: conntrack must not take them for one. */
  get #keepsPorts(): boolean {
    const { relay, intercept } = this.#options;
    const wanted =
      typeof relay === 'object' && relay.from !== 'proxy' && (relay.sourcePort ?? 'ephemeral') !== 'ephemeral';
    return wanted && intercept?.mode !== 'redirect' && intercept?.backend !== 'iptables';
  }

  /** Connections may have been brought here by REDIRECT or DNAT. */
  get #redirected(): boolean {
    const { intercept } = this.#options;
    return intercept === undefined || intercept.mode === 'redirect';
  }

  // ---- accepted by Node: sockets ----------------------------------------------------------------------------------------

  #acceptInNode(fd: number, backlog = BACKLOG): Promise<Acceptor> {
    const server: Server = createServer(this.#options);
    server.on('connection', (socket) => this.#handOver(socket));
    server.on('drop', (data) => this.emit('drop', data));
    return new Promise((resolve, reject) => {
      server.once('error', reject);
      // Node listens again, and takes the backlog from here only.
      (server.listen as (options: object, backlog: number, listening: () => void) => void)({ fd }, backlog, () => {
        server.off('error', reject);
        server.on('error', (error) => this.emit('error', error));
        resolve({ stop: (done) => server.close(done), ref: () => server.ref(), unref: () => server.unref() });
      });
      native.disown(fd);
    });
  }

  #handOver(socket: Socket): void {
    const { from: _, ...destination } = this.#redirected
      ? originalDestination(socket)
      : { ...endpointOf(socket.localAddress, socket.localPort), from: 'sockname' };
    Object.defineProperty(socket, 'originalDestination', { value: destination, enumerable: true });
    const { keepAliveInitialDelay: delay = OWN_KEEPALIVE_MS } = this.#options;
    if (this.#ownHost) socket.setKeepAlive(true, Math.min(delay, OWN_KEEPALIVE_MS));
    const release = this.#retain();
    socket.once('close', release);
    setOwner(socket, () => this.#retain());
    this.emit('connection', socket as TransparentSocket);
  }

  // ---- accepted by the relay thread -------------------------------------------------------------------------------------

  /** Takes the descriptors out of the list as they change hands. */
  #acceptInThreads(listeners: readonly number[][], decide: NonNullable<TransparentServerOptions['relay']>): Acceptor {
    const acceptors: Acceptor[] = [];
    try {
      for (const [index, ofThread] of listeners.entries())
        while (ofThread[0] !== undefined) {
          acceptors.push(this.#acceptInThread(ofThread[0], index, decide));
          ofThread.shift();
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
    const mark = this.rules?.plan.socketMark || undefined;
    return acceptFlows({
      fd,
      thread: relayThread({ netns, engine: this.#engine, index }),
      decide,
      preconnect: this.#options.preconnect === true,
      redirected: this.#redirected,
      from: usualSource(this.#options.intercept),
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
        const socket = new Socket(options);
        native.disown(handed);
        this.#handOver(socket);
      },
      onRelay: (relay, flow) => this.emit('relay', relay, flow),
      onError: (error) => this.emit('error', error),
    });
  }
}

/** Where answers to foreign addresses are not brought here, servers see this host. */
const usualSource = (intercept: InterceptOptions | undefined) =>
  intercept?.mode === 'redirect' ? ('proxy' as const) : ('client' as const);
