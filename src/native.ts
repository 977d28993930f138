/**
 * Loads the addon, and is the one typed declaration of every native function. Nothing else may load it.
 *
 * Conventions of the seam: arguments are checked on this side, native code trusts them. A netlink call is one kernel
 * transaction; it runs on a thread of the addon's own and gives a Promise, and its `...Sync` twin runs at once on the calling thread
 * (for `process.on('exit')`). Errors are made by the factory given to `setErrorFactory` (src/errors.ts), and what netlink calls
 * are given is read through `setPacker` (src/pack.ts).
 * File descriptors change hands by number: who receives one owns it, the other side forgets it.
 */
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { errorFromFailure } from './errors.js';
import type {
  Address,
  Link,
  LinkChange,
  NewLink,
  NftChange,
  NftCounter,
  NftFamily,
  NftGeneration,
  NftKey,
  NftObject,
  NftOperation,
  Route,
  RouteChange,
  RouteOperation,
  RouteQuery,
  RouteWatchFilter,
  Rule,
} from './netlink/types.js';
import { pack } from './pack.js';
import type { Endpoint, Engine, Family, HostPort, RelayReason } from './types.js';

/** What native code tells about a failure; src/errors.ts makes the Error. */
export type NativeFailure =
  | {
      readonly kind: 'netlink';
      /** Positive errno and its name. */
      readonly errno: number;
      readonly code: string;
      /** What was asked, in words: `add rule`, `commit batch`. */
      readonly operation: string;
      /** The message that failed: `RTM_NEWRULE`, `NFT_MSG_NEWRULE`. */
      readonly request: string;
      /** From the extended ack, where the kernel gives it. */
      readonly attribute?: string;
      readonly extack?: string;
      /** Batches: every message that failed, with the index of its operation. */
      readonly errors?: readonly {
        readonly index: number;
        readonly errno: number;
        readonly code: string;
        readonly request: string;
        readonly attribute?: string;
        readonly extack?: string;
      }[];
    }
  | {
      readonly kind: 'socket';
      readonly errno: number;
      readonly code: string;
      /** `bind`, `connect`, `setsockopt IP_TRANSPARENT`, `open /run/netns/x`, ... */
      readonly syscall: string;
      readonly address?: string;
      readonly port?: number;
    };

// ---- netlink ------------------------------------------------------------------------------------------------------------

/**
 * A watch hands what has changed to its function, on this thread, in the order in which it happened; it does not keep the
 * process alive. Gives its number, for `unwatch`.
 */
type NativeWatch<Filter, Change> = (filter: Filter, onChanges: (changes: Change[]) => void) => number;

export interface GuardOptions {
  /** Batches of nf_tables, committed before, each for itself. */
  readonly batches?: readonly (readonly NftOperation[])[];
  /**
   * A table of family inet, with the flags owner and persist, that the socket of this port owns now. It has this long to be
   * taken over by somebody else: the guard deletes the rest only if nobody has, and then the table too.
   */
  readonly orphan?: { readonly table: string; readonly owner: number; readonly graceMs: number };
  /**
   * Nothing is done where somebody else has begun to use the same: where there is an nf_tables table that does not belong to
   * the socket of this port, and has one of these words in its name or comment. (Who comes late must not delete what a
   * successor has made, and what looks just like it.) Not together with `orphan`.
   */
  readonly heir?: { readonly owner: number; readonly words: readonly string[] };
}
/** What stays as it is. */
export interface GuardSettings {
  /**
   * A batch of nf_tables that is committed before a guard with an `heir` looks for that, by a socket of its own, which is closed in the end:
   * others look for the table (with the flag owner) that it makes, and take nothing meanwhile. If it is refused, it is tried again for a second.
   */
  readonly lock?: readonly NftOperation[];
  /** Called once when somebody has ended the guard. */
  readonly onEnd?: () => void;
}

/** When nothing refers to it any more it is as if the process had ended. */
export interface Guard {
  /** Gives it this to do in place of what it had, which costs far less than another guard. If it has been ended, another starts. */
  renew(changes: readonly RouteOperation[], options?: GuardOptions): void;
  /** It has nothing to do any more, until it is given something. */
  rest(): void;
  /** Ends the guard before it does anything. */
  end(): void;
  /** Has it do its work now, as if the process had ended; waits for that up to a second, but not for the grace. */
  release(): void;
}

export interface NativeGuardWork extends GuardOptions {
  readonly changes: readonly RouteOperation[];
  readonly batches: readonly (readonly NftOperation[])[];
}

export interface NativeRouteSocket {
  readonly portId: number;
  /** Each for itself: those behind one that fails are made all the same, and the failure's `errors` tells which failed. */
  commit(operations: readonly RouteOperation[]): Promise<void>;
  commitSync(operations: readonly RouteOperation[]): void;
  ruleAdd(rule: Rule): Promise<void>;
  ruleDelete(rule: Rule): Promise<void>;
  ruleList(family?: Family): Promise<Rule[]>;
  routeAdd(route: Route): Promise<void>;
  routeReplace(route: Route): Promise<void>;
  routeDelete(route: Route): Promise<void>;
  routeList(filter?: { family?: Family; table?: number }): Promise<Route[]>;
  routeGet(query: RouteQuery): Promise<Route>;
  linkList(): Promise<Link[]>;
  linkGet(dev: string | number): Promise<Link>;
  linkAdd(link: NewLink): Promise<void>;
  linkSet(dev: string | number, change: LinkChange): Promise<void>;
  linkDelete(dev: string | number): Promise<void>;
  addressAdd(address: Address): Promise<void>;
  addressReplace(address: Address): Promise<void>;
  addressDelete(address: Address): Promise<void>;
  addressList(family?: Family): Promise<Address[]>;
  /** Starts a child process that does this, first the batches, when this process has ended, however. */
  guard(
    work: NativeGuardWork,
    lock: readonly NftOperation[],
    onEnd?: () => void,
  ): Omit<Guard, 'renew'> & { renew(work: NativeGuardWork): void };
  /** `ip monitor rule route link address`. */
  watch: NativeWatch<RouteWatchFilter, RouteChange>;
  close(): Promise<void>;
}

interface NativeListFilter {
  readonly family?: NftFamily;
  readonly table?: string;
  readonly chain?: string;
  readonly set?: string;
  readonly counter?: string;
}

export interface NativeNftablesSocket {
  /** The netlink port id: what the kernel shows as the owner of tables made through this socket. */
  readonly portId: number;
  /**
   * One batch, all or nothing. `generation`: refuse with ERESTART if the rule set is not of this generation any more.
   * `dryRun`: everything is validated, nothing committed (the batch is sent without its end).
   */
  commit(
    operations: readonly NftOperation[] | Prepared,
    options: { generation?: number; dryRun?: boolean } | undefined,
  ): Promise<void>;
  commitSync(operations: readonly NftOperation[], options: { generation?: number; dryRun?: boolean } | undefined): void;
  generation(): Promise<NftGeneration>;
  list<K extends NftObject['kind']>(
    kind: K,
    filter: NativeListFilter | undefined,
  ): Promise<Extract<NftObject, { kind: K }>[]>;
  get(key: NftKey): Promise<NftObject>;
  resetCounters(filter: NativeListFilter): Promise<NftCounter[]>;
  /** `nft monitor`. `table`: only what concerns tables of this name. */
  watch: NativeWatch<{ readonly table?: string }, NftChange>;
  /** Closing the socket makes the kernel delete the tables it owns. */
  close(): Promise<void>;
}

declare const ofNative: unique symbol;
export interface Prepared {
  readonly [ofNative]: 'Prepared';
}

// ---- sockets ------------------------------------------------------------------------------------------------------------

export interface NativeListenOptions {
  readonly address: string;
  readonly port: number;
  readonly backlog: number;
  /** IP_TRANSPARENT (and IPV6_TRANSPARENT on AF_INET6). */
  readonly transparent: boolean;
  /** Default false: an AF_INET6 wildcard socket takes IPv4 too. */
  readonly v6Only?: boolean;
  readonly reusePort?: boolean;
  readonly mark?: number;
  readonly netns?: string;
}

export interface NativeConnectOptions {
  readonly address: string;
  readonly port: number;
  /** Bound before the connect when given; a foreign address is fine (IP_TRANSPARENT). */
  readonly localAddress?: string;
  /** 0 or absent: chosen at connect time per 4-tuple (IP_BIND_ADDRESS_NO_PORT). */
  readonly localPort?: number;
  /** With a localPort: on EADDRINUSE, EADDRNOTAVAIL or EACCES (a privileged port) fall back to a chosen one. */
  readonly localPortOptional?: boolean;
  readonly mark?: number;
  readonly timeoutMs?: number;
}

// ---- relay thread -------------------------------------------------------------------------------------------------------

export interface NativeRelayLimits {
  /** 0 = never. No byte either way for this long: reason `idle`. */
  readonly idleTimeoutMs?: number;
  /** The same, once one side has ended. Absent: `idleTimeoutMs` holds on. */
  readonly halfCloseTimeoutMs?: number;
  readonly keepAliveMs?: number;
  readonly userTimeoutMs?: number;
}

export type NativeDecision =
  | ({
      readonly kind: 'relay';
      readonly engine: Engine;
      /** The server gets a header of the PROXY protocol, of this version, before the client's first byte. */
      readonly proxyProtocol?: 1 | 2;
    } & NativeConnectOptions &
      NativeRelayLimits)
  | { readonly kind: 'socket' }
  | { readonly kind: 'reset' }
  | { readonly kind: 'close' };

/** To `address:port`, or without it to where each connection was meant for. */
export type NativeUpstream = Partial<NativeConnectOptions> & {
  /** `client`: from each client's address, and with `clientPort` its port. */
  readonly from: 'client' | 'proxy';
  readonly clientPort?: boolean;
  readonly proxyProtocol?: 1 | 2;
};

/**
 * The thread that accepts, connects and relays, all in one network namespace. It works in file descriptors it owns;
 * JavaScript hears of it through `onEvents`, never per chunk. It starts with the first call that needs it, which throws
 * when it cannot be started (`open /run/netns/x`). Ids are unique in a thread and never used again; each ends with exactly
 * one event: `connected` or `failed` for a connect, `socket` or `ended` for a flow or a relay, `closed` for an accept.
 */
export interface NativeRelayThread {
  /** Connects and hands the socket back: `connected` or `failed`. */
  connect(options: NativeConnectOptions): number;
  /** Takes both descriptors over, with bytes that were read from them already. Ends with `ended`. */
  relay(
    options: {
      readonly clientFd: number;
      readonly serverFd: number;
      readonly clientPreface?: Uint8Array;
      readonly serverPreface?: Uint8Array;
      readonly engine: Engine;
      /** Slot of `counters` the relay counts in, besides that of its server. */
      readonly counters: BigUint64Array;
    } & NativeRelayLimits,
  ): number;
  /**
   * Accepts on a listening descriptor that it takes over. With `decide`, each connection is told as a `flow` event and
   * waits for `decide()`; without, it is relayed by `upstream`, and JavaScript hears nothing of it unless told to `tell`.
   * With `preconnect` it connects by `upstream` while the decision is waited for; what is decided otherwise resets that
   * connection, and a server that speaks first, or fails, answers a peek. A client that connected to the listener itself is
   * reset (ELOOP): relaying it to its destination would come back here for ever. `redirected`: conntrack is asked for the
   * original destination.
   */
  accept(
    options: {
      readonly fd: number;
      readonly decide: boolean;
      readonly preconnect?: boolean;
      readonly tell?: boolean;
      readonly redirected?: boolean;
      readonly engine: Engine;
      readonly upstream: NativeUpstream;
      readonly counters: BigUint64Array;
    } & NativeRelayLimits,
  ): number;
  /**
   * `counters`: of this one relay, besides those of the server it was accepted on. A `reset` or `close` ends the flow with
   * reason `destroyed`. Unknown ids are ignored: the client may just have gone.
   */
  decide(flow: number, decision: NativeDecision, counters?: BigUint64Array): void;
  /**
   * MSG_PEEK on a flow that waits for its decision: `peeked`, unless the flow ends before. A second peek, or a decision,
   * answers the one before with what there is.
   */
  peek(flow: number, bytes: number, timeoutMs: number): void;
  /**
   * Ends a connect (`failed` with ECANCELED), a flow or a relay (`ended`, `destroyed`) at once, with RST to both sides.
   * Unknown ids are ignored: it may just have ended.
   */
  destroy(id: number): void;
  /** Whether relays of a listener without `decide` are told, from now on: as `relayed` when they begin, and `ended`. */
  tell(server: number, wanted: boolean): void;
  /**
   * Closes a listener: no new connections; `closed` follows when the last of its connections has ended. After `drainMs`
   * those that are left are reset.
   */
  stopAccepting(id: number, drainMs?: number): void;
  /**
   * Starts a child process with the privileges that this process has now. Sockets of later connects that this process may
   * not open or bind itself (EPERM, EACCES) come from it, until `stopBroker`, or until the thread is stopped.
   */
  startBroker(): void;
  stopBroker(): void;
  /** Ends everything with RST, without any further event, and the thread itself. It cannot be used again. */
  stop(): void;
  /** Whether the thread keeps the process alive; at first it does not. */
  ref(): void;
  unref(): void;
}

/**
 * Indices into a `counters` array, written by the relay thread with relaxed atomic stores and read here with plain loads.
 * The array must be made over an ArrayBuffer of `length` times 8 bytes: its memory is then outside V8's moving heap. Native code holds a reference until it writes no more.
 */
export const Counter = {
  bytesFromClient: 0,
  bytesFromServer: 1,
  connectionsTotal: 2,
  connectionsOpen: 3,
  spliced: 4,
  copied: 5,
  connectErrors: 6,
  acceptErrors: 7,
  /** With bytes in them, at this moment. */
  pipes: 8,
  length: 9,
} as const;

export interface NativeFlow {
  readonly server: number;
  readonly id: number;
  readonly source: Endpoint;
  readonly originalDestination: Endpoint;
}

export type NativeRelayEvent =
  | ({ readonly kind: 'flow' } & NativeFlow)
  | ({ readonly kind: 'relayed' } & NativeFlow)
  | { readonly kind: 'peeked'; readonly id: number; readonly data: Buffer }
  /** A `relay` decision has its upstream connection: bytes flow from now on. `localPortKept` as below. */
  | { readonly kind: 'opened'; readonly id: number; readonly localPortKept?: boolean }
  /** The answer to `connect()`, or to a `socket` decision: the descriptor is the receiver's. `localPortKept` tells whether a wanted localPort was had. */
  | {
      readonly kind: 'connected' | 'socket';
      readonly id: number;
      readonly fd: number;
      readonly localPortKept?: boolean;
    }
  | { readonly kind: 'failed'; readonly id: number; readonly failure: NativeFailure }
  | {
      readonly kind: 'ended';
      readonly id: number;
      readonly reason: RelayReason;
      readonly failure?: NativeFailure;
      readonly bytesFromClient: bigint;
      readonly bytesFromServer: bigint;
    }
  /** accept(2) failed; the listener goes on. */
  | { readonly kind: 'acceptFailed'; readonly server: number; readonly failure: NativeFailure }
  | { readonly kind: 'closed'; readonly server: number };

// ---- the module ---------------------------------------------------------------------------------------------------------

export interface Native {
  setErrorFactory(factory: (failure: NativeFailure) => Error): void;
  /** `packer` makes the bytes by which native code reads what the functions below are given. */
  setPacker(packer: (value: unknown) => Uint8Array): void;

  RouteSocket: new (netns?: string) => NativeRouteSocket;
  NftablesSocket: new (netns?: string) => NativeNftablesSocket;
  /** Ends a watch: its function is not called any more. */
  unwatch(watch: number): void;
  /** What `commit` takes in the place of operations: it is worked out on another thread from now on. */
  prepare(operations: readonly NftOperation[]): Prepared;
  /** See src/netlink/sequence.ts. */
  sequence<T extends readonly Promise<unknown>[]>(calls: () => T): T;
  /** The bytes of the message that ruleAdd (and so on) would send, sequence number 0. For golden tests. */
  encodeRule(verb: 'add' | 'replace' | 'delete', rule: Rule): Buffer;
  encodeRoute(verb: 'add' | 'replace' | 'delete', route: Route): Buffer;
  encodeRouteQuery(query: RouteQuery): Buffer;
  encodeAddress(verb: 'add' | 'replace' | 'delete', address: Address): Buffer;
  encodeNewLink(link: NewLink): Buffer;
  encodeLinkChange(index: number, change: LinkChange): Buffer;
  encodeLinkDeletion(index: number): Buffer;
  /** The whole batch, begin and end included, sequence numbers from 0. */
  encodeBatch(operations: readonly NftOperation[], options?: { generation?: number }): Buffer;
  encodeGet(key: NftKey): Buffer;
  /** Reads one such message (without its batch) back. */
  decodeRule(message: Uint8Array): Rule;
  decodeRoute(message: Uint8Array): Route;
  decodeAddress(message: Uint8Array): Address;
  decodeNftables(message: Uint8Array): NftOperation;

  /** A bound, listening socket. Equivalent to: socket, setsockopt IP_TRANSPARENT, bind, listen. */
  openListener(options: NativeListenOptions): number;
  /** fcntl F_DUPFD_CLOEXEC. */
  duplicate(fd: number): number;
  closeDescriptor(fd: number): void;
  /**
   * To be called when a handle of Node's has taken over a descriptor that came from here. What nobody has when a worker thread
   * ends is closed with it.
   */
  disown(fd: number): void;
  /** getsockname. */
  socketAddress(fd: number): Endpoint;
  /** Where the client of an accepted socket meant to go. getsockname, getsockopt SO_ORIGINAL_DST / IP6T_SO_ORIGINAL_DST. */
  originalDestination(fd: number): Endpoint & { readonly from: 'sockname' | 'conntrack' };
  /**
   * Makes sure that a descriptor that was passed to this process is a listening TCP socket (ENOTSOCK, EINVAL), and sets
   * FD_CLOEXEC. Gives whether it has IP_TRANSPARENT.
   */
  inheritListener(fd: number): boolean;

  /** What the server gets first with `proxyProtocol`. For golden tests. */
  encodeProxyHeader(version: 1 | 2, source: HostPort, destination: HostPort): Buffer;
  /** Whether this process may have an io_uring as the engine `uring` needs it. Equivalent to: io_uring_setup, close. */
  hasUring(): boolean;
  /** Whether it may use splice(2). */
  hasSplice(): boolean;
  /** What is in these files, read inside the network namespace: /proc/sys/net and /proc/thread-self/net are of it. Undefined: cannot be read. */
  readFiles(paths: readonly string[], netns?: string): (string | undefined)[];
  /** `netns`: path of the network namespace it works in. `engine`: what it waits with, and reads short messages by; default epoll. */
  RelayThread: new (
    options: { readonly netns?: string; readonly engine?: 'uring' | 'epoll' },
    onEvents: (events: NativeRelayEvent[]) => void,
  ) => NativeRelayThread;
}

const packageRoot = dirname(dirname(fileURLToPath(import.meta.url)));
// node-gyp-build takes a distribution without /etc/alpine-release for glibc (OpenWrt, Void): tell it what Node itself runs on.
// It reads LIBC when it is loaded.
const report = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
process.env['LIBC'] ??= report.header.glibcVersionRuntime ? 'glibc' : 'musl';
const load = createRequire(import.meta.url)('node-gyp-build') as (directory: string) => Native;

export const native: Native = load(packageRoot);
native.setErrorFactory(errorFromFailure);
native.setPacker(pack);
