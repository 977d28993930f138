/** `ip rule`, `ip route`, `ip link` and `ip address` without the command: rtnetlink over one socket. */
import { checkOptions } from '../errors.js';
import { type Guard, type GuardOptions, type GuardSettings, type NativeRouteSocket, native } from '../native.js';
import type { Family } from '../types.js';
import { checkOperations } from './check/nftables.js';
import {
  checkAddress,
  checkFamily,
  checkLink,
  checkLinkChange,
  checkNewLink,
  checkRoute,
  checkRouteFilter,
  checkRouteOperations,
  checkRouteQuery,
  checkRouteWatch,
  checkRule,
} from './check/rtnetlink.js';
import { checkSocketOptions } from './check/schema.js';
import type {
  Address,
  Link,
  LinkChange,
  NewLink,
  Route,
  RouteChange,
  RouteOperation,
  RouteQuery,
  RouteWatchFilter,
  Rule,
} from './types.js';
import { Watches } from './watches.js';

export type { Guard, GuardOptions, GuardSettings } from '../native.js';

export interface NetlinkSocketOptions {
  /** Path of the network namespace to work in, such as `/run/netns/router`. Default: that of the process. */
  readonly netns?: string;
}

/**
 * A socket to rtnetlink. Each call is one transaction with the kernel, on one of up to four threads of this package's own
 * (or as many as UV_THREADPOOL_SIZE says); calls on one socket run in the order in which they were made. They throw
 * `TypeError` or `RangeError` for arguments that cannot be, and `NetlinkError` where the kernel refuses.
 * Changing anything needs CAP_NET_ADMIN, listing nothing.
 */
export class RouteSocket {
  readonly #native: NativeRouteSocket;
  readonly #watches = new Watches();

  /** Throws `SocketError` where the namespace cannot be entered. */
  constructor(options: NetlinkSocketOptions = {}) {
    checkSocketOptions(options);
    this.#native = new native.RouteSocket(options.netns);
  }

  /** What `watch` tells as the origin of changes made through this socket. */
  get portId(): number {
    return this.#native.portId;
  }

  /**
   * Equivalent to: `ip -force -batch`, in one piece to the kernel. Each operation is one of its own: those that can be
   * done are done. `NetlinkError.errors` has those that could not, each with its index. Names of interfaces are looked up
   * before (`ENODEV`, and nothing is done): one that the same commit adds has a name only where it is given an `index`.
   */
  async commit(operations: readonly RouteOperation[]): Promise<void> {
    checkRouteOperations(operations);
    await this.#native.commit(operations);
  }

  /** The same at once, for `process.on('exit')`. */
  commitSync(operations: readonly RouteOperation[]): void {
    checkRouteOperations(operations);
    this.#native.commitSync(operations);
  }

  /**
   * Equivalent to: `ip rule add iif lo fwmark 0x1/0x3 lookup 100 priority 97 protocol 84`.
   * `EEXIST` where the same rule is there already; a rule that differs in its protocol only is another one.
   */
  async ruleAdd(rule: Rule): Promise<void> {
    checkRule(rule);
    await this.#native.ruleAdd(rule);
  }

  /**
   * Equivalent to: `ip rule del ...`. Removes the first rule that has all that is given: whoever made it, if no protocol
   * is. `ENOENT` where there is none.
   */
  async ruleDelete(rule: Rule): Promise<void> {
    checkRule(rule);
    await this.#native.ruleDelete(rule);
  }

  /** Equivalent to: `ip -4 rule; ip -6 rule`. (The kernel tells all of them or none.) */
  async ruleList(family?: Family): Promise<Rule[]> {
    checkFamily(family);
    return this.#native.ruleList(family);
  }

  /**
   * Equivalent to: `ip route add local default dev lo table 100 protocol 84`. Scope and protocol default as there.
   * `EEXIST` where there is a route with this destination, table and metric; `ENODEV` where there is no such interface.
   */
  async routeAdd(route: Route): Promise<void> {
    checkRoute(route);
    await this.#native.routeAdd(route);
  }

  /**
   * Equivalent to: `ip route replace ...`. Takes the place of the route with this destination, table and metric, or is added
   * where there is none. (The kernel replaces no policy rules: add the new one, then delete the old.)
   */
  async routeReplace(route: Route): Promise<void> {
    checkRoute(route);
    await this.#native.routeReplace(route);
  }

  /** Equivalent to: `ip route del ...`. `ESRCH` where there is none. */
  async routeDelete(route: Route): Promise<void> {
    checkRoute(route);
    await this.#native.routeDelete(route);
  }

  /** Equivalent to: `ip route show table 100`; without a table, of all of them. */
  async routeList(filter: { readonly family?: Family; readonly table?: number } = {}): Promise<Route[]> {
    checkRouteFilter(filter);
    return this.#native.routeList(filter);
  }

  /**
   * Equivalent to: `ip route get 192.0.2.1 from 10.1.0.2 iif eth0 mark 0x1`. Which way a packet would go now, and by which
   * table: policy rules are asked too. `ENETUNREACH`, `EHOSTUNREACH`, `EACCES`, `EINVAL` where it would go nowhere, for lack of
   * a route or by one of type unreachable, prohibit, blackhole.
   */
  async routeGet(query: RouteQuery): Promise<Route> {
    checkRouteQuery(query);
    return this.#native.routeGet(query);
  }

  /** Equivalent to: `ip link`. */
  linkList(): Promise<Link[]> {
    return this.#native.linkList();
  }

  /** Equivalent to: `ip link show dev eth0`. By name or number; `ENODEV` where there is none. */
  async linkGet(dev: string | number): Promise<Link> {
    checkLink(dev);
    return this.#native.linkGet(dev);
  }

  /**
   * Equivalent to: `ip link add veth0 type veth peer name veth1`, `ip link add link eth0 name eth0.5 type vlan id 5`. `EEXIST`
   * where the name is taken, `EOPNOTSUPP` where the kernel has no such kind of link (and no module for it), `SocketError` where
   * the namespace cannot be opened. (The kernel replaces no links: `linkSet` changes one.)
   */
  async linkAdd(link: NewLink): Promise<void> {
    checkNewLink(link);
    await this.#native.linkAdd(link);
  }

  /**
   * Equivalent to: `ip link set dev eth0 up mtu 1400 master br0 ...`, with `name` too. In one message, but where the kernel refuses one
   * of several, some may be done. Kernels before 6.2 rename no interface that is up: `EBUSY`.
   */
  async linkSet(dev: string | number, change: LinkChange): Promise<void> {
    checkLink(dev);
    checkLinkChange(change);
    await this.#native.linkSet(dev, change);
  }

  /** Equivalent to: `ip link del dev veth0`. Its peer goes with it. `EOPNOTSUPP` where it is hardware. */
  async linkDelete(dev: string | number): Promise<void> {
    checkLink(dev);
    await this.#native.linkDelete(dev);
  }

  /** Equivalent to: `ip address add 10.1.0.1/24 dev eth0`. `EEXIST` where the interface has it already. */
  async addressAdd(address: Address): Promise<void> {
    checkAddress(address);
    await this.#native.addressAdd(address);
  }

  /** Equivalent to: `ip address replace ...`. Adds it where it is not there; where it is, IPv6 takes the new flags. */
  async addressReplace(address: Address): Promise<void> {
    checkAddress(address);
    await this.#native.addressReplace(address);
  }

  /** Equivalent to: `ip address del ...`. `EADDRNOTAVAIL` where the interface does not have it. */
  async addressDelete(address: Address): Promise<void> {
    checkAddress(address);
    await this.#native.addressDelete(address);
  }

  /** Equivalent to: `ip address`. (No single one: the kernel would tell IPv6 addresses only.) */
  async addressList(family?: Family): Promise<Address[]> {
    checkFamily(family);
    return this.#native.addressList(family);
  }

  /**
   * Starts a guard: a small child process that makes these changes, mostly deletions, when this process has ended, in whatever way
   * (`kill -9` too). It outlives everything but a signal to itself, of which `onEnd` tells. `end()` it when they are made,
   * or need not be. With nothing to do it is started when `renew` tells it of something.
   * Equivalent to: `( while read _; do :; done; ip rule del ...; ip route del ... ) <pipe &`
   */
  guard(changes: readonly RouteOperation[], options: GuardOptions & GuardSettings = {}): Guard {
    checkGuard(changes, options, ['batches', 'orphan', 'heir', 'lock', 'onEnd']);
    const { lock = [], onEnd, ...more } = options;
    checkOperations(lock);
    const guard = this.#native.guard({ changes, batches: [], ...more }, lock, onEnd);
    return {
      ...guard,
      renew(changes, options = {}) {
        checkGuard(changes, options, ['batches', 'orphan', 'heir']);
        guard.renew({ changes, batches: [], ...options });
      },
    };
  }

  /**
   * Equivalent to: `ip monitor rule route link address`. Tells of changes by whomever, this socket too, from now until the
   * socket is closed or the function that this gives is called. Does not keep the process alive.
   */
  watch(onChanges: (changes: RouteChange[]) => void, filter: RouteWatchFilter = {}): () => void {
    checkRouteWatch(filter, onChanges);
    const watch = this.#native.watch(filter, onChanges);
    return this.#watches.add(() => native.unwatch(watch));
  }

  /** Ends the watches. A call under way is finished first; those that wait for it, and later ones, fail with `EBADF`. */
  close(): Promise<void> {
    this.#watches.endAll();
    return this.#native.close();
  }
}

function checkGuard(changes: readonly RouteOperation[], options: GuardOptions, known: string[]): void {
  checkRouteOperations(changes);
  checkOptions('guard options', options, known);
  for (const batch of options.batches ?? []) checkOperations(batch);
}
