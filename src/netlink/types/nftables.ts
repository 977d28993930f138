/** What rules stand in: the objects of linux/netfilter/nf_tables.h. The C++ side is src-native/nftables/object.h. */
import type { NftExpression } from './expression.js';
import type { ChangeOrigin } from './rtnetlink.js';

/** NFPROTO_IPV4, NFPROTO_INET, ... */
export type NftFamily = 'ip' | 'ip6' | 'inet' | 'arp' | 'bridge' | 'netdev';

/** `nft add table inet x { flags owner; }`. */
export interface NftTable {
  readonly kind: 'table';
  readonly family: NftFamily;
  readonly name: string;
  readonly flags?: readonly ('dormant' | 'owner' | 'persist' | number)[];
  /** nft's TLVs, with the comment in them (`encodeComment`, `decodeComment`). */
  readonly userdata?: Uint8Array;
  /** Read back only. */
  readonly handle?: bigint;
  /** Netlink port id of the socket that owns the table. Read back only. */
  readonly owner?: number;
}

/** `nft add chain inet x c { type filter hook prerouting priority mangle; policy accept; }`. */
export interface NftChain {
  readonly kind: 'chain';
  readonly family: NftFamily;
  readonly table: string;
  readonly name: string;
  /** Of base chains only, as hook, priority and policy. */
  readonly type?: 'filter' | 'route' | 'nat' | (string & {});
  readonly hook?: 'prerouting' | 'input' | 'forward' | 'output' | 'postrouting' | 'ingress' | number;
  readonly priority?: number;
  readonly policy?: 'accept' | 'drop' | number;
  /** nft's TLVs, with the comment in them. */
  readonly userdata?: Uint8Array;
  readonly handle?: bigint;
}

/** `nft add rule inet x c ...`: its expressions are what nft makes of the words. */
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

/** `nft add set inet x s { type ipv4_addr; flags interval; }`. */
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
  /** How long elements stay that say nothing of it; and how often the kernel looks for those whose time is over. */
  readonly timeoutMs?: bigint;
  readonly gcIntervalMs?: number;
  readonly size?: number;
  readonly policy?: 'performance' | 'memory' | number;
  readonly userdata?: Uint8Array;
  readonly handle?: bigint;
}

/** `nft add element inet x s { ... }`: elements of a set (read back, all of them). */
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

/**
 * One element. An interval of a plain interval set is two, its first key and, flagged `intervalEnd`, the first behind it; of
 * a set of concatenations it is one with a `keyEnd`, which is in it.
 */
export interface NftElement {
  /** Empty in a `catchall` element. */
  readonly key: Uint8Array;
  /** The last key, in sets of concatenated intervals only. */
  readonly keyEnd?: Uint8Array;
  readonly flags?: readonly ('intervalEnd' | 'catchall' | number)[];
  readonly timeoutMs?: bigint;
  /** nft's TLVs (`encodeOpenInterval`). */
  readonly userdata?: Uint8Array;
  /** Read back only. */
  readonly expiresMs?: bigint;
}

/** `nft add counter inet x web`: a counter with a name, which rules count into by an `objref`. Added with figures it begins at those. */
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
