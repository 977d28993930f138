/** `ip rule`, `ip route`, `ip link`, `ip address`: what rtnetlink tells and is told. The C++ side is src-native/rtnetlink. */
import type { Family, Fwmark } from '../../types.js';

/** `ip rule`. linux/fib_rules.h */
export interface Rule {
  readonly family: Family;
  readonly priority?: number;
  readonly action: 'lookup' | 'goto' | 'nop' | 'blackhole' | 'unreachable' | 'prohibit' | number;
  readonly table?: number;
  /** Priority of the rule to go on with, for action `goto`. */
  readonly goto?: number;
  /** `not`. */
  readonly invert?: boolean;
  readonly fwmark?: Fwmark;
  readonly iif?: string;
  readonly oif?: string;
  readonly from?: string;
  readonly to?: string;
  readonly tos?: number;
  /** `ipproto`: IP protocol number. */
  readonly ipProtocol?: number;
  /** `sport`, `dport`, `uidrange`; both ends are in it. */
  readonly sourcePorts?: { readonly start: number; readonly end: number };
  readonly destinationPorts?: { readonly start: number; readonly end: number };
  readonly users?: { readonly start: number; readonly end: number };
  readonly suppressPrefixLength?: number;
  /** Who made it (`proto` in `ip -d rule`); part of a rule's identity. */
  readonly protocol?: number;
  /** The table is that of the interface's VRF. */
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
  /** Who made it (RTPROT_BOOT, ...). Default: `boot`, 3, as `ip route` has it. */
  readonly protocol?: number;
  /** Name of the interface, or its index. */
  readonly dev?: string | number;
  readonly gateway?: string;
  readonly preferredSource?: string;
  readonly metric?: number;
  /** Several ways at once, in the place of `dev` and `gateway`. A weight is 1 to 256, by default 1. */
  readonly nexthops?: readonly {
    readonly dev?: string | number;
    readonly gateway?: string;
    readonly weight?: number;
  }[];
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

/** What `RouteSocket.watch` is to tell of routes and policy rules: the rest is not even handed to this thread. */
export interface RouteWatchFilter {
  /** Of routes only those in this table. */
  readonly table?: number;
  /** Of policy rules only those with one of these priorities. */
  readonly priorities?: readonly number[];
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
  | { readonly verb: 'add' | 'replace' | 'delete'; readonly kind: 'address'; readonly address: Address }
  | { readonly verb: 'add'; readonly kind: 'link'; readonly link: NewLink }
  | { readonly verb: 'set'; readonly kind: 'link'; readonly dev: string | number; readonly change: LinkChange }
  | { readonly verb: 'delete'; readonly kind: 'link'; readonly dev: string | number };
