/**
 * What rtnetlink and nf_tables objects look like in TypeScript: plain data, both directions, types only.
 * Field names are those of `ip` and `nft` in camelCase; string values are the words `ip` and `nft` print. A number stands
 * where the kernel knows a value that this package has no word for, so that decoding never loses anything.
 * The C++ side of each type is one struct with one `describe` function in src-native/{rtnetlink,nftables}.
 */
import type { Family, Fwmark } from '../types.js';

// ---- rtnetlink: ip rule, ip route, ip link, ip address -----------------------------------------------------------------

/** `ip rule`. linux/fib_rules.h */
export interface Rule {
  readonly family: Family;
  readonly priority?: number;
  readonly action: 'lookup' | 'goto' | 'nop' | 'blackhole' | 'unreachable' | 'prohibit' | number;
  readonly table?: number;
  /** Priority of the rule to go on with, for action `goto`. */
  readonly goto?: number;
  readonly invert?: boolean;
  readonly fwmark?: Fwmark;
  readonly iif?: string;
  readonly oif?: string;
  readonly from?: string;
  readonly to?: string;
  readonly tos?: number;
  /** IP protocol number. */
  readonly ipProtocol?: number;
  readonly sourcePorts?: { readonly start: number; readonly end: number };
  readonly destinationPorts?: { readonly start: number; readonly end: number };
  readonly users?: { readonly start: number; readonly end: number };
  readonly suppressPrefixLength?: number;
  /** Who made it (`proto` in `ip -d rule`); part of a rule's identity. */
  readonly protocol?: number;
  readonly l3mdev?: boolean;
}

/** `ip route`. linux/rtnetlink.h */
export interface Route {
  readonly family: Family;
  readonly type:
    | 'unicast'
    | 'local'
    | 'broadcast'
    | 'anycast'
    | 'multicast'
    | 'blackhole'
    | 'unreachable'
    | 'prohibit'
    | 'throw'
    | number;
  /** A prefix or `default`. */
  readonly destination: string;
  readonly table: number;
  readonly scope?: 'universe' | 'site' | 'link' | 'host' | 'nowhere' | number;
  readonly protocol?: number;
  /** Name of the interface, or its index. */
  readonly dev?: string | number;
  readonly gateway?: string;
  readonly preferredSource?: string;
  readonly metric?: number;
}

/** `ip -d link`. linux/if_link.h */
export interface Link {
  readonly index: number;
  readonly name: string;
  readonly altNames?: readonly string[];
  /** IFF_UP and so on, of linux/if.h. */
  readonly flags: number;
  /** Of the link layer, such as `02:00:00:00:00:01`. */
  readonly address?: string;
  readonly mtu?: number;
  /** Index of the bridge that it is a port of. */
  readonly master?: number;
  /** Index of the link that it stands on or, of a veth, of its peer; with `linkNetnsId` in another namespace. */
  readonly link?: number;
  readonly linkNetnsId?: number;
  /** Of links that are not hardware. */
  readonly linkInfo?: LinkInfo;
}

/** The kinds of `ip link add ... type KIND`, each with its own settings. */
export type LinkInfo =
  /** `veth`. Which one its peer is the kernel tells by `link`. */
  | { readonly kind: 'veth'; readonly peer?: LinkPeer }
  /** `bridge`. Times in hundredths of a second. */
  | {
      readonly kind: 'bridge';
      readonly forwardDelay?: number;
      readonly helloTime?: number;
      readonly maxAge?: number;
      readonly ageingTime?: number;
      /** 0: no spanning tree, 1: the kernel's, 2: a program's. */
      readonly stpState?: number;
      readonly priority?: number;
      readonly vlanFiltering?: boolean;
      readonly mcastSnooping?: boolean;
    }
  /** `vlan`, on another `link`. */
  | { readonly kind: 'vlan'; readonly id: number; readonly protocol?: '802.1Q' | '802.1ad' | number }
  /** `macvlan`, on another `link`. */
  | { readonly kind: 'macvlan'; readonly mode?: 'private' | 'vepa' | 'bridge' | 'passthru' | 'source' | number }
  | { readonly kind: 'dummy' }
  | { readonly kind: 'ifb' }
  /** A kind that this package has no word for, and its IFLA_INFO_DATA as the kernel has it. */
  | { readonly kind: 'unknown'; readonly name: string; readonly data?: Uint8Array };

/** What `ip link set` changes; the rest stays as it is. */
export interface LinkChange {
  readonly up?: boolean;
  /** Of the link layer, such as `02:00:00:00:00:01`. */
  readonly address?: string;
  readonly mtu?: number;
  /** The bridge that it shall be a port of, by name or index; `null`: none (`nomaster`). */
  readonly master?: string | number | null;
  /** Another network namespace to go to: its path, or the id of a process that is in it. */
  readonly netns?: string | number;
  /** The new name. */
  readonly name?: string;
}

/** The other end of a new veth pair. Without a name it gets one from the kernel. */
export interface LinkPeer extends Omit<LinkChange, 'master'> {
  /** The kernel takes it only where the first end is given one too. */
  readonly index?: number;
}

/** What `ip link add` makes. */
export interface NewLink extends LinkChange {
  readonly name: string;
  readonly linkInfo: LinkInfo;
  /** Default: any that is free. */
  readonly index?: number;
  /** What it stands on (`ip link add link eth0 ... type vlan`), by name or index. */
  readonly link?: string | number;
}

/** `ip address`. */
export interface Address {
  readonly family: Family;
  readonly address: string;
  /** Where it is not `address`: the other end of a point-to-point link. */
  readonly peer?: string;
  readonly broadcast?: string;
  readonly prefixLength: number;
  readonly linkIndex: number;
  readonly scope: 'universe' | 'site' | 'link' | 'host' | 'nowhere' | number;
  /** `nodad`, `noprefixroute` and others are for who adds it; most are the kernel's to tell. */
  readonly flags?: readonly (
    | 'secondary'
    | 'nodad'
    | 'optimistic'
    | 'dadfailed'
    | 'home'
    | 'deprecated'
    | 'tentative'
    | 'permanent'
    | 'mngtmpaddr'
    | 'noprefixroute'
    | 'autojoin'
    | 'stable-privacy'
    | number
  )[];
}

/** What `ip route get` asks: which way a packet would go. */
export interface RouteQuery {
  readonly family: Family;
  readonly destination: string;
  /** With `iif`: of the packet. Without: of the socket that sends it. */
  readonly source?: string;
  /** As if the packet had come in there. */
  readonly iif?: string | number;
  readonly oif?: string | number;
  readonly mark?: number;
  readonly uid?: number;
}

/** By whom a change was made. */
export interface ChangeOrigin {
  /**
   * Netlink port id of who asked for it; 0: nobody, the kernel did it by itself. The first netlink socket of a process has
   * the process id, further ones have numbers above 2^31.
   */
  readonly portId: number;
}

/** What `ip monitor rule route link address` prints. `lost`: something more happened, but too fast to be told; look again. */
export type RouteChange =
  | (ChangeOrigin & {
      readonly verb: 'add' | 'delete';
      /** Of the process that has the port id for its process id, where it was still there to be asked. */
      readonly processName?: string;
    } & (
        | { readonly kind: 'rule'; readonly rule: Rule }
        | { readonly kind: 'route'; readonly route: Route }
        | { readonly kind: 'link'; readonly link: Link }
        | { readonly kind: 'address'; readonly address: Address }
      ))
  | { readonly kind: 'lost' };

/** One change of many that go to the kernel together. */
export type RouteOperation =
  | { readonly verb: 'add' | 'delete'; readonly kind: 'rule'; readonly rule: Rule }
  | { readonly verb: 'add' | 'replace' | 'delete'; readonly kind: 'route'; readonly route: Route }
  | { readonly verb: 'add' | 'replace' | 'delete'; readonly kind: 'address'; readonly address: Address };

// ---- nf_tables: linux/netfilter/nf_tables.h ---------------------------------------------------------------------------

export type NftFamily = 'ip' | 'ip6' | 'inet' | 'arp' | 'bridge' | 'netdev';

export interface NftTable {
  readonly kind: 'table';
  readonly family: NftFamily;
  readonly name: string;
  readonly flags?: readonly ('dormant' | 'owner' | 'persist' | number)[];
  /** nft's TLVs; see `userdata` in src/netlink/userdata.ts for the comment in it. */
  readonly userdata?: Uint8Array;
  /** Read back only. */
  readonly handle?: bigint;
  /** Netlink port id of the socket that owns the table. Read back only. */
  readonly owner?: number;
}

export interface NftChain {
  readonly kind: 'chain';
  readonly family: NftFamily;
  readonly table: string;
  readonly name: string;
  /** Base chains only. */
  readonly type?: 'filter' | 'route' | 'nat' | (string & {});
  readonly hook?: 'prerouting' | 'input' | 'forward' | 'output' | 'postrouting' | 'ingress' | number;
  readonly priority?: number;
  readonly policy?: 'accept' | 'drop' | number;
  /** nft's TLVs; see src/netlink/userdata.ts for the comment in it. */
  readonly userdata?: Uint8Array;
  readonly handle?: bigint;
}

export interface NftRule {
  readonly kind: 'rule';
  readonly family: NftFamily;
  readonly table: string;
  readonly chain: string;
  readonly expressions: readonly NftExpression[];
  /**
   * What iptables' matches and targets are told of `-p`: the protocol's number (0: any), and 2 where it is inverted. They
   * refuse to work without. The kernel does not list it.
   */
  readonly compatProtocol?: number;
  readonly compatFlags?: number;
  readonly userdata?: Uint8Array;
  readonly handle?: bigint;
  /** Insert after this handle (add) or before it (insert). */
  readonly position?: bigint;
}

export interface NftSet {
  readonly kind: 'set';
  readonly family: NftFamily;
  readonly table: string;
  readonly name: string;
  /** Names the set inside one batch before it has a handle; needed where rules refer to it so. Default: a free one. */
  readonly id?: number;
  readonly flags?: readonly (
    | 'anonymous'
    | 'constant'
    | 'interval'
    | 'map'
    | 'timeout'
    | 'eval'
    | 'object'
    | 'concat'
    | 'expr'
    | number
  )[];
  /** nft's own datatype number (a concatenation is subtypes in 6-bit groups), only for nft's eyes. */
  readonly keyType: number;
  readonly keyLength: number;
  /** Byte lengths of the fields of a concatenation with intervals. */
  readonly concatenation?: readonly number[];
  readonly timeoutMs?: bigint;
  readonly gcIntervalMs?: number;
  readonly size?: number;
  readonly policy?: 'performance' | 'memory' | number;
  readonly userdata?: Uint8Array;
  readonly handle?: bigint;
}

/** Elements of a set, one message (or, read back, all of them). */
export interface NftElements {
  readonly kind: 'elements';
  readonly family: NftFamily;
  readonly table: string;
  readonly set: string;
  readonly setId?: number;
  readonly elements: readonly NftElement[];
  /**
   * More elements, of an interval set, without an object for each, which takes longer than the kernel does: pairs of keys
   * one behind the other, the first of an interval and the first behind it. Read back they are `elements`.
   */
  readonly intervals?: { readonly keyLength: number; readonly keys: Uint8Array };
}

export interface NftElement {
  /** Empty in a `catchall` element. */
  readonly key: Uint8Array;
  /** Upper end, for sets of concatenated intervals only; plain interval sets mark their ends by flag. */
  readonly keyEnd?: Uint8Array;
  readonly flags?: readonly ('intervalEnd' | 'catchall' | number)[];
  readonly timeoutMs?: bigint;
  /** nft's TLVs; see src/netlink/userdata.ts. */
  readonly userdata?: Uint8Array;
  /** Read back only. */
  readonly expiresMs?: bigint;
}

/** A counter with a name, which rules count into by an `objref`. Added with figures it begins at those. */
export interface NftCounter {
  readonly kind: 'counter';
  readonly family: NftFamily;
  readonly table: string;
  readonly name: string;
  readonly packets?: bigint;
  readonly bytes?: bigint;
  readonly userdata?: Uint8Array;
  readonly handle?: bigint;
  /** How many rules refer to it. Read back only. */
  readonly use?: number;
}

export type NftObject = NftTable | NftChain | NftRule | NftSet | NftElements | NftCounter;

/** What names one object: of rules the handle, of elements the set and their keys, of all else the name. */
export type NftKey =
  | Pick<NftTable, 'kind' | 'family' | 'name'>
  | Pick<NftChain | NftSet | NftCounter, 'kind' | 'family' | 'table' | 'name'>
  | (Pick<NftRule, 'kind' | 'family' | 'table' | 'chain'> & { readonly handle: bigint })
  | (Pick<NftElements, 'kind' | 'family' | 'table' | 'set'> & {
      readonly elements: readonly Pick<NftElement, 'key' | 'keyEnd' | 'flags'>[];
    });

/** One message of a batch. `create` is `add` that fails with EEXIST where the thing is there already. */
export type NftOperation =
  | { readonly verb: 'add' | 'create' | 'delete'; readonly object: NftObject }
  /** Fails with EBUSY where there is something in it, as `iptables -X` does. (`delete` deletes that, too.) */
  | { readonly verb: 'deleteEmpty'; readonly object: NftTable | NftChain | NftSet }
  | { readonly verb: 'insert'; readonly object: NftRule }
  /** `nft flush chain` / `flush table`: all rules. `nft flush set`: elements without any. */
  | { readonly verb: 'flush'; readonly object: NftTable | NftChain | NftSet };

/**
 * Expressions: the kernel's instructions, in the order in which a rule runs them. Registers are the kernel's numbers:
 * 0 = verdict, 1..4 = 16 bytes each, 8..23 = 4 bytes each (8 is the start of 1, 12 of 2, ...).
 */
export type NftExpression =
  | { readonly kind: 'meta'; readonly key: NftMetaKey; readonly dreg?: number; readonly sreg?: number }
  | {
      readonly kind: 'payload';
      readonly base: 'link' | 'network' | 'transport' | 'inner';
      readonly offset: number;
      readonly length: number;
      readonly dreg: number;
    }
  | {
      readonly kind: 'cmp';
      readonly op: 'eq' | 'neq' | 'lt' | 'lte' | 'gt' | 'gte';
      readonly sreg: number;
      readonly data: Uint8Array;
    }
  | {
      readonly kind: 'bitwise';
      readonly sreg: number;
      readonly dreg: number;
      readonly length: number;
      readonly mask: Uint8Array;
      readonly xor: Uint8Array;
    }
  | { readonly kind: 'immediate'; readonly dreg: number; readonly data: Uint8Array }
  | { readonly kind: 'verdict'; readonly verdict: NftVerdict; readonly chain?: string }
  | {
      readonly kind: 'lookup';
      readonly set: string;
      readonly setId?: number;
      readonly sreg: number;
      readonly dreg?: number;
      readonly invert?: boolean;
    }
  | {
      readonly kind: 'dynset';
      readonly set: string;
      readonly setId?: number;
      readonly op: 'add' | 'update' | 'delete';
      readonly sregKey: number;
      readonly timeoutMs?: bigint;
      readonly invert?: boolean;
    }
  | {
      readonly kind: 'fib';
      readonly result: 'oif' | 'oifname' | 'type';
      readonly flags: readonly ('saddr' | 'daddr' | 'mark' | 'iif' | 'oif' | 'present' | number)[];
      readonly dreg: number;
    }
  | {
      readonly kind: 'socket';
      readonly key: 'transparent' | 'mark' | 'wildcard' | 'cgroupv2' | number;
      readonly level?: number;
      readonly dreg: number;
    }
  | {
      readonly kind: 'tproxy';
      readonly family: 'ip' | 'ip6' | 'unspec';
      readonly regAddr?: number;
      readonly regPort?: number;
    }
  /** `redirect` in a chain of type nat: to this host itself, at the port that the register holds. */
  | {
      readonly kind: 'redir';
      readonly regProtoMin?: number;
      readonly regProtoMax?: number;
      readonly flags?: readonly (
        | 'mapIps'
        | 'protoSpecified'
        | 'protoRandom'
        | 'persistent'
        | 'protoRandomFully'
        | number
      )[];
    }
  | {
      readonly kind: 'ct';
      readonly key: NftCtKey;
      readonly direction?: 'original' | 'reply';
      readonly dreg?: number;
      readonly sreg?: number;
    }
  | { readonly kind: 'counter'; readonly packets: bigint; readonly bytes: bigint }
  /** Turns numbers of `size` bytes round, so that ranges of host order numbers (`meta skuid 1000-2000`) can be compared. */
  | {
      readonly kind: 'byteorder';
      readonly op: 'ntoh' | 'hton' | number;
      readonly sreg: number;
      readonly dreg: number;
      readonly length: number;
      readonly size: number;
    }
  /** Runs an object of the rule's table: `counter name "web"`. */
  | {
      readonly kind: 'objref';
      readonly type:
        | 'counter'
        | 'quota'
        | 'ctHelper'
        | 'limit'
        | 'connlimit'
        | 'tunnel'
        | 'ctTimeout'
        | 'secmark'
        | 'ctExpect'
        | 'synproxy'
        | number;
      readonly name: string;
    }
  /** xtables' matches and targets as iptables' nft variant writes them (nft_compat); `info` is the C structure of that name and revision. */
  | { readonly kind: 'match' | 'target'; readonly name: string; readonly revision: number; readonly info: Uint8Array }
  /** Something that this package has no word for, as the kernel sent it. */
  | { readonly kind: 'unknown'; readonly name: string; readonly data: Uint8Array };

export type NftVerdict = 'accept' | 'drop' | 'continue' | 'return' | 'jump' | 'goto' | 'queue' | number;
export type NftMetaKey =
  | 'len'
  | 'protocol'
  | 'priority'
  | 'mark'
  | 'iif'
  | 'oif'
  | 'iifname'
  | 'oifname'
  | 'iiftype'
  | 'oiftype'
  | 'skuid'
  | 'skgid'
  | 'nfproto'
  | 'l4proto'
  | 'cpu'
  | 'iifgroup'
  | 'oifgroup'
  | 'cgroup'
  | number;
export type NftCtKey =
  | 'state'
  | 'direction'
  | 'status'
  | 'mark'
  | 'expiration'
  | 'l3protocol'
  | 'protocol'
  | 'zone'
  | number;

/** `nft list ruleset`'s generation: changes with every committed batch. */
export interface NftGeneration {
  readonly id: number;
  /** Of the last batch's maker, as counted in the first process id namespace: in a container it is another one there. */
  readonly processId: number;
  readonly processName: string;
}

/** What `nft monitor` prints: one committed batch, and its generation with who made it. `lost` as in RouteChange. */
export type NftChange =
  | (ChangeOrigin & {
      readonly kind: 'batch';
      /** `delete` is told with what identifies the object, at times more. */
      readonly operations: readonly NftOperation[];
      readonly generation: NftGeneration;
    })
  | { readonly kind: 'lost' };
