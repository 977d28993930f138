/**
 * The expressions of nf_tables: the kernel's instructions, in the order in which a rule runs them. `nft --debug=netlink` shows
 * those of a rule in nft's words. The C++ side is src-native/nftables/expression.h.
 */

/**
 * One for each of the kernel's, its fields named as its attributes (NFTA_META_KEY is `key`). Registers are the kernel's numbers:
 * 0 = verdict, 1..4 = 16 bytes each, 8..23 = 4 bytes each (8 is the start of 1, 12 of 2, ...).
 */
export type NftExpression =
  /** `meta mark`, `iifname`: loads it to `dreg`. `meta mark set ...`: sets it from `sreg`. */
  | { readonly kind: 'meta'; readonly key: NftMetaKey; readonly dreg?: number; readonly sreg?: number }
  /** `ip saddr`, `tcp dport`: loads bytes of the packet, from the beginning of a header (NFT_PAYLOAD_NETWORK_HEADER, ...). */
  | {
      readonly kind: 'payload';
      readonly base: 'link' | 'network' | 'transport' | 'inner';
      readonly offset: number;
      readonly length: number;
      readonly dreg: number;
    }
  /** `== 5`, `!= 5`: the rule goes on only if the register holds such bytes. */
  | {
      readonly kind: 'cmp';
      readonly op: 'eq' | 'neq' | 'lt' | 'lte' | 'gt' | 'gte';
      readonly sreg: number;
      readonly data: Uint8Array;
    }
  /** `& 0xff`, `| 1`, `^ 1`: dreg = (sreg & mask) ^ xor. `x | y` is mask ~y, xor y. */
  | {
      readonly kind: 'bitwise';
      readonly sreg: number;
      readonly dreg: number;
      readonly length: number;
      readonly mask: Uint8Array;
      readonly xor: Uint8Array;
    }
  /** A constant, for an expression that takes it from a register: the 5 of `meta mark set 5`. */
  | { readonly kind: 'immediate'; readonly dreg: number; readonly data: Uint8Array }
  /** `accept`, `drop`, `jump other`. To the kernel an immediate for register 0. */
  | { readonly kind: 'verdict'; readonly verdict: NftVerdict; readonly chain?: string }
  /** `ip saddr @set`, `tcp dport { 80, 443 }`; with a `dreg`, of a map. `setId` names a set of the same batch. */
  | {
      readonly kind: 'lookup';
      readonly set: string;
      readonly setId?: number;
      readonly sreg: number;
      readonly dreg?: number;
      readonly invert?: boolean;
    }
  /** `add @set { ip saddr timeout 10s }`, `update`, `delete`. */
  | {
      readonly kind: 'dynset';
      readonly set: string;
      readonly setId?: number;
      readonly op: 'add' | 'update' | 'delete';
      readonly sregKey: number;
      readonly timeoutMs?: bigint;
      readonly invert?: boolean;
    }
  /** `fib daddr type`, `fib saddr . iif oif`: what the routing tables say. */
  | {
      readonly kind: 'fib';
      readonly result: 'oif' | 'oifname' | 'type';
      readonly flags: readonly ('saddr' | 'daddr' | 'mark' | 'iif' | 'oif' | 'present' | number)[];
      readonly dreg: number;
    }
  /** `socket transparent`, `socket cgroupv2 level 2`: of the socket that the packet is for. */
  | {
      readonly kind: 'socket';
      readonly key: 'transparent' | 'mark' | 'wildcard' | 'cgroupv2' | number;
      readonly level?: number;
      readonly dreg: number;
    }
  /** `tproxy ip to 127.0.0.1:50080`: gives the packet to the listener at the address and port that the registers hold. */
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
  /** `ct state`, `ct original zone`; `ct zone set 5`. */
  | {
      readonly kind: 'ct';
      readonly key: NftCtKey;
      readonly direction?: 'original' | 'reply';
      readonly dreg?: number;
      readonly sreg?: number;
    }
  /** `counter`. Added with figures it begins at those. */
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

/** NF_ACCEPT, NF_DROP, NF_QUEUE of linux/netfilter.h, and enum nft_verdicts. */
export type NftVerdict = 'accept' | 'drop' | 'continue' | 'return' | 'jump' | 'goto' | 'queue' | number;

/** enum nft_meta_keys. */
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

/** enum nft_ct_keys. */
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
