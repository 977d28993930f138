/**
 * The vocabulary of the package: types only, no code. Kernel, iproute2 and nft words in camelCase.
 * What belongs here is used by two or more files and is part of the public contract.
 */

export type Family = 'ipv4' | 'ipv6';

/** One end of a connection. IPv4-mapped IPv6 addresses are always shown as the IPv4 address they stand for. */
export interface Endpoint {
  readonly family: Family;
  readonly address: string;
  readonly port: number;
}

export interface HostPort {
  readonly address: string;
  readonly port: number;
}

/** A value under a mask, as in `ip rule add fwmark 0x1/0x3`. Only the bits of the mask are ever read or written. */
export interface Fwmark {
  readonly value: number;
  readonly mask: number;
}

/** A port or a range: `80`, `'80'`, `'8000-8999'`. */
export type PortSpec = number | string;

/**
 * How relayed bytes are moved. `uring`: readiness and short messages by an io_uring, bulk by splice(2). `epoll`: the same
 * with epoll and recv. `uring-splice`: as `uring`, but bulk by IORING_OP_SPLICE, which the kernel leaves to worker threads:
 * slower on few CPUs. `copy`: recv/send in native memory only. `auto`, the default of every option, is `uring`, which
 * measured fastest, or `epoll` where io_uring is forbidden. Where splice is, all are `copy`.
 */
export type Engine = 'uring' | 'uring-splice' | 'epoll' | 'copy';

/** How the source port of a connection from a foreign address is chosen. */
export type SourcePort = 'ephemeral' | 'prefer' | 'preserve';

export interface InterceptOptions {
  /** TCP destination ports to intercept; `true` = all, `[]` = none until `rules.ports.tcp.add()`. */
  readonly tcp?: true | readonly PortSpec[];
  /** UDP destination ports likewise. */
  readonly udp?: true | readonly PortSpec[];
  /**
   * Only from these source prefixes, both families mixed; of this host's own addresses too, with `ownHost`. A family without
   * a prefix is then not intercepted at all.
   */
  readonly from?: readonly string[];
  /** Only to these destination prefixes, both families mixed. */
  readonly to?: readonly string[];
  /** Never from or to these prefixes. */
  readonly exclude?: { readonly from?: readonly string[]; readonly to?: readonly string[] };
  /** Ingress interfaces, which must exist; default every one but `lo`, those that appear later included. */
  readonly interfaces?: readonly string[];
  /**
   * Also what this host itself sends: everybody, or only these users (name or number) and cgroups (v2, by path: what runs
   * there or below). What the proxy itself sends must carry the mark `rules.plan.socketMark`, or it would be intercepted,
   * for ever: relays, and `connectTransparent` in the process that installed the rules, set it.
   *
   * While nobody listens, it is dropped, whatever `onDown` says: the kernel has turned it round already, and cannot send it
   * on. Together with `udp: true` it needs conntrack, which alone can tell the answers of this host's own services from its
   * questions; with a list of ports, answers to a client whose source port is on it are taken too.
   */
  readonly ownHost?: true | OwnHostOptions;
  /** Default both. */
  readonly families?: readonly Family[];
  /**
   * What happens to matching traffic while nobody listens: it passes unproxied (`open`, default) or is dropped (`closed`,
   * which is all that backend `iptables` can do).
   */
  readonly onDown?: 'open' | 'closed';
  /**
   * `tproxy` (default). `redirect`: nat REDIRECT, for hosts without tproxy and socket matches: TCP only, and nothing foreign:
   * connections come to a wildcard listener, and go on from this host's own address. What nobody accepts is refused, and
   * connections of this host itself are not intercepted.
   */
  readonly mode?: 'tproxy' | 'redirect';
  /**
   * A conntrack zone (1 to 65535) for the clients' side of each connection: for a proxy that connects from its client's
   * address and port (`sourcePort: 'preserve'`), on a host that uses conntrack (NAT, a stateful firewall). Both sides are then
   * one connection to conntrack, which drops or never masquerades it; the zone keeps them apart. `auto`: 84 where the rules
   * of this host use conntrack when it is installed. Default: none; `auto`
   * where a server's `relay` is one decision with such a sourcePort.
   */
  readonly zone?: number | 'auto';
  /** Two adjacent free mark bits and the value in them that means "deliver here". Default: chosen free on this host. */
  readonly fwmark?: Fwmark;
  /** Routing table of our own. Default: 100, or the next free one. */
  readonly table?: number;
  /** First of the four consecutive policy rule priorities that we use. Default: 97, or a free place near it. */
  readonly priority?: number;
  /** Names the nf_tables table `linux-tproxy-<name>`. Default: the port. */
  readonly name?: string;
  /**
   * Where the rules are: in an nf_tables table of our own (default), or in chains of our own in the table `mangle` of iptables'
   * nft variant, for hosts that are managed by it: `iptables -t mangle -S` lists, `iptables-save` saves them. There conntrack
   * remembers connections, with the same two bits of its mark, and other bits of the mark are lost of packets that open a
   * connection to a listener on a foreign address. A `name` has at most 8 characters. Sets are live, but for `ttlMs`.
   */
  readonly backend?: 'nftables' | 'iptables';
  /**
   * `process` (default): the nf_tables table dies with this process, and with it all the rest. `permanent`: all of it stays
   * until uninstalled. `persist` (Linux 6.9): it is protected as a process's own, but outlives it, with its rules in force,
   * until a process that installs the same `name` takes it over, in one atomic batch: what is intercepted is so without a
   * gap. Also of a process that lives: asked by the new one, it lets go (`handover` event), and no connection is lost.
   */
  readonly lifetime?: 'process' | 'permanent' | 'persist';
  /** With `lifetime: 'persist'`: all of it goes when for this long no process has taken over. Default 60,000. */
  readonly graceMs?: number;
  /**
   * While this process lives, what somebody else removes or changes is put back at once, and a `repaired` event tells of it.
   * Default true.
   */
  readonly repair?: boolean;
}

/** Something that somebody else had changed in what is installed, and that is again as it was. */
export interface RepairReport {
  /** In the words of `ip` and `nft`: `policy rule 98 (ipv4)`, `table inet linux-tproxy-50080`. */
  readonly repaired: readonly string[];
  /** Who changed it, where the kernel tells. Empty: the kernel itself, for an interface went down, or it cannot be known. */
  readonly by: readonly ChangedBy[];
  /** From the kernel's first word of it to the end of the repair. */
  readonly milliseconds: number;
}

/** A process. Its id is as seen by that process itself, should it be in a container. The name is missing where it ended too fast. */
export interface ChangedBy {
  readonly processId: number;
  readonly processName?: string;
}

export interface OwnHostOptions {
  readonly users?: readonly (string | number)[];
  readonly cgroups?: readonly string[];
}

/**
 * A set of the rules, live: every change is one atomic batch that touches no rule and no counter. It behaves as a set of
 * addresses (or ports), whatever prefixes they were added by: what overlaps is merged, and a part of a prefix can be deleted.
 * Changes are made one after the other, in the order of the calls. Bad input is refused before anything is changed.
 */
export interface LiveSet<Spec> {
  /**
   * Adds one or many. With `ttlMs` the kernel takes them out again after that time, by itself; an address that is there for
   * longer already stays so. Equivalent to: `nft add element inet linux-tproxy-<name> <set> { 10.0.0.0/8 timeout 60s }`.
   */
  add(specs: Spec | readonly Spec[], options?: { readonly ttlMs?: number }): Promise<void>;
  /** Takes out one or many, or the part of it that is there. Equivalent to: `nft delete element ...`. */
  delete(specs: Spec | readonly Spec[]): Promise<void>;
  /** Leaves exactly these in it, in one atomic batch: what stays is not out for a moment. */
  replace(specs: readonly Spec[]): Promise<void>;
  /** What is in it now, merged and in ascending order. */
  values(): Spec[];
}
/** Prefixes of both families mixed. Those of a family that is not installed change nothing. */
export type PrefixSet = LiveSet<string>;
export type PortSet = LiveSet<PortSpec>;

/** A connection that was meant for somebody else, as a `relay: (flow) => ...` callback sees it. */
export interface Flow {
  readonly protocol: 'tcp';
  readonly source: Endpoint;
  readonly originalDestination: Endpoint;
  /**
   * The first bytes the client sent, without consuming them: resolves when `bytes` of them are there, the client has
   * ended, or `timeoutMs` is over, with what there is (perhaps nothing: in many protocols the server speaks first; with
   * the server's option `preconnect` it resolves as soon as the server has spoken).
   * Equivalent to: `recv(fd, ..., MSG_PEEK)`.
   */
  peek(bytes: number, timeoutMs: number): Promise<Buffer>;
}

export type RelayDecision =
  | {
      readonly kind: 'relay';
      /** Where to connect. Default: the original destination. */
      readonly to?: HostPort;
      /** Whose address the server sees. Default `client`. */
      readonly from?: 'client' | 'proxy' | HostPort;
      readonly sourcePort?: SourcePort;
      /**
       * Tells the server whom the client is and meant to reach: it gets a header of the PROXY protocol, version 1 (text) or
       * 2 (binary), before the first byte. Only for servers that are set up for it: to all others it is garbage.
       */
      readonly proxyProtocol?: 1 | 2;
    }
  /** Hand the connection to the `connection` listener as a TransparentSocket. */
  | { readonly kind: 'socket' }
  | { readonly kind: 'reset' }
  | { readonly kind: 'close' };

/** What can be decided for all connections alike, and is then carried out without any JavaScript. */
export type RelayTarget = Extract<RelayDecision, { kind: 'relay' }>;

export type RelayReason = 'end' | 'reset' | 'idle' | 'destroyed' | 'error';

export interface RelayResult {
  readonly bytesFromClient: bigint;
  readonly bytesFromServer: bigint;
  readonly reason: RelayReason;
  readonly error?: Error;
}

/** Of one relay, read live from shared memory. */
export interface RelayCounts {
  readonly bytesFromClient: bigint;
  readonly bytesFromServer: bigint;
  /** How the bytes went: through a pipe by splice(2), or through native memory. */
  readonly spliced: bigint;
  readonly copied: bigint;
  /** Pipes that have bytes in them, at this moment: of directions whose receiver is slower than their sender. */
  readonly pipes: number;
}

/** Totals of a server's relays. */
export interface RelayStats extends RelayCounts {
  readonly engine: Engine;
  readonly connections: { readonly open: number; readonly total: number };
  /** Upstream connects that failed, and accept(2) calls that failed (EMFILE and the like). */
  readonly connectErrors: number;
  readonly acceptErrors: number;
}

/** What goes to the diagnostics channel `linux-tproxy.relay.open` when a relay has both its connections. */
export interface RelayOpened {
  /** The same in what is told of its end; no two relays of a process have the same. */
  readonly id: number;
  readonly engine: Engine;
  readonly source: Endpoint;
  readonly originalDestination: Endpoint;
}
/** What goes to the channel `linux-tproxy.relay.close` when one of those has ended. */
export interface RelayClosed extends RelayOpened {
  readonly result: RelayResult;
}

/** What the doctor has to say of one thing on this host. */
export interface Finding {
  /** What was looked at: for machines, and the same in every version. */
  readonly id: string;
  /** `fail`: it does not work here. `warn`: not for everybody, not always, or slower than it could. */
  readonly severity: 'ok' | 'warn' | 'fail';
  readonly summary: string;
  /** Why it matters, and what was seen. */
  readonly detail: string;
  /** The command that mends it. */
  readonly fix?: string;
}
