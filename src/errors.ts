/**
 * Every Error class and code of the package. Nothing else makes an Error out of what native code tells.
 * A message says what was tried, what the kernel answered and, where the cause is known, what to do about it.
 */
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import type { NativeFailure } from './native.js';

type NetlinkFailure = Extract<NativeFailure, { kind: 'netlink' }>;
type SocketFailure = Extract<NativeFailure, { kind: 'socket' }>;

/** One message of a failed batch. */
export interface NetlinkMessageError {
  /** Which operation of the batch. */
  readonly index: number;
  readonly code: string;
  readonly errno: number;
  readonly request: string;
  readonly attribute?: string;
  readonly extack?: string;
}

/** The kernel refused a netlink request. `errno` is negative, as everywhere in Node. */
export class NetlinkError extends Error {
  override readonly name = 'NetlinkError';
  readonly code: string;
  readonly errno: number;
  /** In words: `add rule`, `commit batch`. */
  readonly operation: string;
  /** The message that failed: `RTM_NEWRULE`, `NFT_MSG_NEWRULE`. */
  readonly request: string;
  /** The attribute that the kernel's extended ack points at. */
  readonly attribute?: string;
  /** The kernel's own words. */
  readonly extack?: string;
  /** Batches: every message that failed. */
  readonly errors?: readonly NetlinkMessageError[];

  constructor(failure: NetlinkFailure) {
    const where = failure.attribute ? `${failure.request}, ${failure.attribute}` : failure.request;
    const said = failure.extack ? `${describe(failure)} "${failure.extack}"` : describe(failure);
    super(withRemedy(`${failure.operation} (${where}): ${said}`, netlinkRemedy(failure)));
    this.code = failure.code;
    this.errno = -failure.errno;
    this.operation = failure.operation;
    this.request = failure.request;
    if (failure.attribute !== undefined) this.attribute = failure.attribute;
    if (failure.extack !== undefined) this.extack = failure.extack;
    if (failure.errors !== undefined) this.errors = failure.errors.map((error) => ({ ...error, errno: -error.errno }));
  }
}

/**
 * What stood in the way of installing an interception, or of taking one down (the host is as it was before), or, of codes
 * `REPAIR` and `CONTESTED`, stands in the way of keeping it.
 */
export class InterceptError extends Error {
  override readonly name = 'InterceptError';
  constructor(
    readonly code:
      | 'ERR_TPROXY_NAME_IN_USE'
      | 'ERR_TPROXY_OWNED'
      | 'ERR_TPROXY_MARK_IN_USE'
      | 'ERR_TPROXY_TABLE_IN_USE'
      | 'ERR_TPROXY_PRIORITY_IN_USE'
      | 'ERR_TPROXY_NO_INTERFACE'
      | 'ERR_TPROXY_NO_USER'
      | 'ERR_TPROXY_NO_CGROUP'
      | 'ERR_TPROXY_NO_SET'
      | 'ERR_TPROXY_UNSUPPORTED'
      | 'ERR_TPROXY_INSTALL'
      | 'ERR_TPROXY_REPAIR'
      | 'ERR_TPROXY_BRIDGE'
      | 'ERR_TPROXY_CONTESTED',
    message: string,
    /** Which step of the installation failed, when one did. */
    readonly step?: InstallStep,
    cause?: unknown,
  ) {
    super(message, cause === undefined ? undefined : { cause });
  }
}

/** `takeover`: in the place of the last four, where a predecessor left its table (`lifetime: 'persist'`). */
export type InstallStep = 'check' | 'table' | 'routes' | 'rules' | 'batch' | 'takeover';

/** A failed system call on a socket, in the shape Node's own have: `code`, `errno`, `syscall`, `address`, `port`. */
export class SocketError extends Error {
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  readonly address?: string;
  readonly port?: number;

  constructor(failure: SocketFailure) {
    const where = failure.address === undefined ? '' : ` ${hostPort(failure.address, failure.port)}`;
    super(withRemedy(`${failure.syscall}${where}: ${describe(failure)}`, socketRemedy(failure)));
    this.code = failure.code;
    this.errno = -failure.errno;
    this.syscall = failure.syscall;
    if (failure.address !== undefined) this.address = failure.address;
    if (failure.port !== undefined) this.port = failure.port;
  }
}

/** What calls on a socket that is closed are rejected with. */
export const closedSocket = () =>
  new NetlinkError({
    kind: 'netlink',
    errno: constants.errno.EBADF,
    code: 'EBADF',
    operation: 'use a closed socket',
    request: 'none',
  });

/** The factory given to native code. */
export function errorFromFailure(failure: NativeFailure): NetlinkError | SocketError {
  return failure.kind === 'netlink' ? new NetlinkError(failure) : new SocketError(failure);
}

export function invalidType(name: string, expected: string, actual: unknown): TypeError {
  return coded(new TypeError(`${name} must be ${expected}, not ${show(actual)}`), 'ERR_INVALID_ARG_TYPE');
}

export function invalidValue(name: string, expected: string, actual: unknown): TypeError {
  return coded(new TypeError(`${name} must be ${expected}, not ${show(actual)}`), 'ERR_INVALID_ARG_VALUE');
}

export function outOfRange(name: string, range: string, actual: unknown): RangeError {
  return coded(new RangeError(`${name} must be ${range}, not ${show(actual)}`), 'ERR_OUT_OF_RANGE');
}

export function checkMilliseconds(name: string, value: unknown): void {
  if (typeof value !== 'number') throw invalidType(name, 'a number', value);
  if (!(Number.isFinite(value) && value >= 0)) throw outOfRange(name, 'a time in milliseconds', value);
}

/** systemd has not passed the socket that is wanted. */
export function noPassedSocket(message: string): Error {
  return coded(new Error(message), 'ERR_TPROXY_NO_PASSED_SOCKET');
}

/** The command was called as it cannot be. */
export function usageError(message: string): TypeError {
  return coded(new TypeError(message), 'ERR_TPROXY_USAGE');
}

/** Refuses options nobody knows: a misspelt `tpc` would otherwise intercept nothing, silently. */
export function checkOptions(name: string, options: object, known: readonly string[]): void {
  for (const key of Object.keys(options))
    if (!known.includes(key))
      throw coded(
        new TypeError(`${name} has no option '${key}'; it takes ${known.join(', ')}`),
        'ERR_INVALID_ARG_VALUE',
      );
}

function coded<E extends Error>(error: E, code: string): E & { code: string } {
  return Object.assign(error, { code });
}

function show(value: unknown): string {
  return typeof value === 'string'
    ? `'${value}'`
    : typeof value === 'object' && value
      ? JSON.stringify(value)
      : String(value);
}

function hostPort(address: string, port: number | undefined): string {
  if (port === undefined) return address;
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

function describe(failure: { code: string; errno: number }): string {
  const text = getSystemErrorMap().get(-failure.errno)?.[1];
  return text ? `${failure.code}, ${text}` : failure.code;
}

const withRemedy = (message: string, remedy: string | undefined) => (remedy ? `${message}. ${remedy}` : message);

const NO_NF_TABLES =
  'This kernel has no nf_tables: it needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET (modprobe nf_tables).';

function netlinkRemedy({ code, request }: NetlinkFailure): string | undefined {
  switch (code) {
    case 'EPERM':
      return 'This needs CAP_NET_ADMIN in the network namespace it works in: run as root, or give the capability (systemd: AmbientCapabilities=CAP_NET_ADMIN; a container: --cap-add NET_ADMIN). A table that another process owns cannot be changed by anybody else.';
    case 'EPROTONOSUPPORT':
      return request === 'socket NETLINK_NETFILTER' ? NO_NF_TABLES : undefined;
    case 'EINVAL':
      // What nfnetlink answers when nobody has registered for nf_tables; the generation is asked for first.
      return request === 'NFT_MSG_GETGEN' ? NO_NF_TABLES : undefined;
    case 'ENOENT':
      return request === 'NFT_MSG_NEWRULE'
        ? 'The kernel knows no such expression: interception needs nft_tproxy, nft_socket and nft_fib_inet (CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET, CONFIG_NFT_FIB_INET); with backend iptables nft_compat, xt_TPROXY, xt_socket, xt_connmark, xt_conntrack, xt_addrtype, xt_multiport and xt_comment.'
        : undefined;
    case 'EOPNOTSUPP':
      return request === 'NFT_MSG_NEWTABLE'
        ? 'This kernel has no such tables: those of one process (flag owner) need Linux 5.12, those that outlive it (persist) Linux 6.9.'
        : undefined;
    case 'EACCES':
      return request === 'RTM_NEWROUTE'
        ? 'IPv6 is switched off on this interface: `sysctl net.ipv6.conf.lo.disable_ipv6=0`, or intercept IPv4 alone (families).'
        : undefined;
    case 'ENETDOWN':
      return 'The interface is down: `ip link set lo up`.';
    case 'ERESTART':
      return 'Somebody else changed the rule set in between: try again.';
    case 'ENOBUFS':
      return 'The kernel ran out of room for its answers: try again.';
    default:
      return undefined;
  }
}

function socketRemedy({ code, syscall, address, port }: SocketFailure): string | undefined {
  const routeGet = `ip route get ${address ?? ''}`.trim();
  if (code === 'EPERM' && /TRANSPARENT|SO_MARK/.test(syscall))
    return 'Transparent sockets need CAP_NET_ADMIN or CAP_NET_RAW (systemd: AmbientCapabilities=CAP_NET_ADMIN).';
  if (code === 'EACCES' && syscall === 'bind') return 'Ports below 1024 need CAP_NET_BIND_SERVICE.';
  if (code === 'EPERM' && syscall === 'setns') return 'Entering a network namespace needs CAP_SYS_ADMIN.';
  if (code === 'ENOENT' && syscall.startsWith('open'))
    return 'There is no such network namespace: see `ip netns list`.';
  if (code === 'EADDRINUSE')
    return syscall === 'bind'
      ? `Another socket is bound there: see \`ss -antp 'sport = :${port ?? 0}'\`. With sourcePort 'prefer' another port is taken then.`
      : undefined;
  if (code === 'EADDRNOTAVAIL')
    return address && syscall === 'bind'
      ? 'A foreign address can only be bound by a transparent socket.'
      : 'No free port is left for this source and destination (net.ipv4.ip_local_port_range), or the wanted one is in use by the same pair.';
  if (code === 'ENETUNREACH') return `There is no route to it: see \`${routeGet}\`.`;
  if (code === 'EHOSTUNREACH' && syscall === 'connect')
    return `Nobody on the link has the address of the next hop (see \`ip neigh\`), or the route is of type unreachable (see \`${routeGet}\`).`;
  if (code === 'EACCES' && syscall === 'connect') return `The route is of type prohibit: see \`${routeGet}\`.`;
  if (code === 'ETIMEDOUT' && syscall === 'connect')
    return 'Nobody answered. If the source address is foreign, the answers must be routed back through this host and diverted to it: install the rules (intercept: {}).';
  return undefined;
}
