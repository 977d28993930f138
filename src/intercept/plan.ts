/**
 * Options -> Plan: everything the host must be told, as plain data, with every default filled in. Pure: the same options
 * always make the same plan, and nothing is asked of the host. (install.ts looks at the host first, and passes the mark,
 * table and priority that are free there.)
 */
import { isIP } from 'node:net';
import { checkOptions, invalidType, invalidValue, outOfRange } from '../errors.js';
import type { NftOperation, Route, Rule } from '../netlink/types.js';
import type { Family, Fwmark, InterceptOptions } from '../types.js';
import { LONGEST_NAME, pathOf } from './iptables.js';
import { CGROUP_PATH_BYTES } from './iptables-words.js';
import { mangleOperations, nothing } from './mangle.js';
import { nftablesOperations, tableObject } from './nftables.js';
import { once } from './once.js';
import { parsePorts, parsePrefixes, type Range } from './ranges.js';
import { PRIORITIES, routingOf } from './routing.js';
import { planText } from './text.js';

const TABLE_PREFIX = 'linux-tproxy-';
const DEFAULT_FWMARK: Fwmark = { value: 0x1, mask: 0x3 };
const DEFAULT_TABLE = 100;
const DEFAULT_PRIORITY = 97;
const DEFAULT_GRACE_MS = 60_000;
const DEFAULT_ZONE = 84;

export type PrefixRanges = Readonly<Record<Family, readonly Range[]>>;

export interface PlanOptions extends InterceptOptions {
  /** Where the proxy listens. */
  readonly port: number;
  /** Where the proxy listens when it is one address only. */
  readonly address?: string;
  /** The numbers of the names in `ownHost`, which the kernel wants. `installIntercept` looks them up. */
  readonly ids?: HostIds;
}

/** What users and cgroups are to the kernel. */
export interface HostIds {
  readonly users: Readonly<Record<string, number>>;
  /** Of its directory: the path from /sys/fs/cgroup on, and the inode number. */
  readonly cgroups: Readonly<Record<string, { readonly path: string; readonly id: bigint }>>;
}

/** Whose packets of this host are intercepted; nobody named: everybody's. `id` once it is known. */
export interface OwnHost {
  readonly users: readonly { readonly name: string; readonly id?: number }[];
  readonly cgroups: readonly { readonly path: string; readonly level: number; readonly id?: bigint }[];
}

export interface Plan {
  readonly name: string;
  readonly backend: 'nftables' | 'iptables';
  /** Name of the nf_tables table, of family inet; with backend `iptables` also of the first of our chains in `mangle`. */
  readonly nftTable: string;
  readonly families: readonly Family[];
  readonly port: number;
  readonly address?: string;
  /** Intercepted ports; without either nothing is intercepted, only diverted. */
  readonly tcp?: readonly Range[];
  readonly udp?: readonly Range[];
  readonly from?: PrefixRanges;
  readonly to?: PrefixRanges;
  readonly exclude: { readonly from: PrefixRanges; readonly to: PrefixRanges };
  readonly interfaces?: readonly string[];
  readonly ownHost?: OwnHost;
  readonly mode: 'tproxy' | 'redirect';
  /** Conntrack zone of the clients' side. */
  readonly zone?: number;
  readonly onDown: 'open' | 'closed';
  readonly lifetime: 'process' | 'permanent' | 'persist';
  /** How long it outlives its process. */
  readonly graceMs?: number;
  /** With mode `redirect` there are no marks, policy rules and routes: this and the numbers of them are 0. "Deliver here." Its value is also the mark for UDP sockets that answer from a foreign address. */
  readonly fwmark: Fwmark;
  /**
   * The mark (SO_MARK) of the proxy's own connections and questions: all bits of the mask. By it they are not intercepted
   * themselves, and datagrams that answer them are brought to them. A UDP socket that answers in somebody else's name must
   * not have it: it would be given the next questions too.
   */
  readonly socketMark: number;
  readonly table: number;
  readonly priority: number;
  /**
   * What goes into the kernel, in this order; taken out in reverse. (With backend `iptables` the table `mangle` and its
   * built-in chains are among it, as if nobody had them yet: those that are there stay as they are.)
   */
  readonly routes: readonly Route[];
  readonly rules: readonly Rule[];
  /** @throws {TypeError} where names in `ownHost` are not looked up: such a plan is text only */
  readonly nftables: readonly NftOperation[];
  /** The equal `ip` and `nft` commands, as a shell script. */
  toString(): string;
}

/** What is in a plan; the rest of it is made of this. */
export type PlanFacts = Omit<Plan, 'routes' | 'rules' | 'nftables' | 'toString'>;

const OPTIONS = [
  'port',
  'address',
  'ids',
  'tcp',
  'udp',
  'from',
  'to',
  'exclude',
  'interfaces',
  'ownHost',
  'families',
  'mode',
  'zone',
  'onDown',
  'fwmark',
  'table',
  'priority',
  'name',
  'lifetime',
  'graceMs',
  'repair',
  'backend',
];

/**
 * What `installIntercept` would do, without doing it. `String(plan)` is the list of equal commands.
 *
 * @throws {TypeError | RangeError} for options that cannot be meant.
 */
export function planIntercept(options: PlanOptions): Plan {
  checkOptions('intercept', options, OPTIONS);
  const port = integer('port', options.port, 1, 65535);
  const families = parseFamilies(options.families, options.address);
  const name = options.name ?? String(port);
  // The kernel takes names of up to 255 bytes; whoever types one in a shell is glad of a plain alphabet.
  if (typeof name !== 'string' || !/^[A-Za-z0-9_.-]{1,64}$/.test(name))
    throw invalidValue('name', 'of letters, digits, `_`, `.` and `-`, at most 64', name);
  const backend = oneOf('backend', options.backend ?? 'nftables', ['nftables', 'iptables']);
  const mode = oneOf('mode', options.mode ?? 'tproxy', ['tproxy', 'redirect']);
  const redirects = mode === 'redirect';
  if (redirects) checkRedirect(options);
  const facts = {
    name,
    backend,
    nftTable: nftTableOf(options),
    families,
    port,
    ...(options.address !== undefined && { address: options.address }),
    ...(options.tcp !== undefined && { tcp: parsePorts('tcp', options.tcp) }),
    ...(options.udp !== undefined && { udp: parsePorts('udp', options.udp) }),
    ...(options.from && { from: parsePrefixes('from', options.from) }),
    ...(options.to && { to: parsePrefixes('to', options.to) }),
    exclude: parseExclude(options.exclude),
    ...(options.interfaces && { interfaces: parseInterfaces(options.interfaces) }),
    ...(options.ownHost !== undefined && { ownHost: parseOwnHost(options) }),
    mode,
    ...(options.zone !== undefined && { zone: parseZone(options.zone) }),
    onDown: parseOnDown(backend, options.onDown ?? (redirects ? 'closed' : undefined)),
    ...parseLifetime(options),
    ...(redirects ? NO_ROUTING : parseRouting(options)),
  } satisfies PlanFacts;
  if (backend === 'iptables') checkForIptables(facts);
  return planOf(facts);
}

/** The same plan with another `onDown`. */
export function withOnDown(plan: Plan, onDown: Plan['onDown']): Plan {
  if (plan.mode === 'redirect') checkRedirect({ onDown });
  return planOf({ ...plan, onDown: parseOnDown(plan.backend, onDown) });
}

/** The same plan with other things in these sets (of named-sets.ts). */
export function withSets(
  plan: Plan,
  sets: readonly { readonly set: string; readonly ranges: readonly Range[] }[],
): Plan {
  let { tcp, udp, from, to, exclude } = plan;
  for (const { set, ranges } of sets) {
    const family = set.endsWith('4') ? 'ipv4' : 'ipv6';
    if (set === 'tcp_ports') tcp = ranges;
    else if (set === 'udp_ports') udp = ranges;
    else if (set.startsWith('exclude_to')) exclude = { ...exclude, to: { ...exclude.to, [family]: ranges } };
    else if (set.startsWith('exclude_from')) exclude = { ...exclude, from: { ...exclude.from, [family]: ranges } };
    else if (set.startsWith('to') && to) to = { ...to, [family]: ranges };
    else if (from) from = { ...from, [family]: ranges };
  }
  return planOf({
    ...plan,
    exclude,
    ...(tcp && { tcp }),
    ...(udp && { udp }),
    ...(from && { from }),
    ...(to && { to }),
  });
}

/** What all plans have in common: with a getter of its own, each plan would be an object of another shape to the engine. */
const made: Pick<Plan, 'nftables' | 'toString'> & ThisType<Plan> = {
  get nftables() {
    checkIds(this.ownHost);
    return operationsOf(this);
  },
  toString() {
    return planText(this);
  },
};
const planOf = (facts: PlanFacts): Plan => Object.assign(Object.create(made), facts, routingOf(facts));

const operationsOf = once((plan: Plan): readonly NftOperation[] =>
  plan.backend === 'iptables'
    ? [{ verb: 'add', object: tableObject(plan) }, ...mangleOperations(plan, nothing)]
    : nftablesOperations(plan),
);

export const nftTableOf = ({ name, port }: Pick<PlanOptions, 'name' | 'port'>) => `${TABLE_PREFIX}${name ?? port}`;

/** Name of a table of ours -> the `name` option, or undefined for a table of somebody else. */
export function nameOfTable(nftTable: string): string | undefined {
  return nftTable.startsWith(TABLE_PREFIX) ? nftTable.slice(TABLE_PREFIX.length) : undefined;
}

function parseFamilies(families: readonly Family[] | undefined, address: string | undefined): readonly Family[] {
  if (families !== undefined && (!Array.isArray(families) || families.length === 0))
    throw invalidType('families', "a list of 'ipv4' and 'ipv6'", families);
  const wanted = (['ipv4', 'ipv6'] as const).filter((family) => families?.includes(family) ?? true);
  for (const family of families ?? []) oneOf('families', family, ['ipv4', 'ipv6']);
  if (address === undefined) return wanted;
  const version = isIP(address);
  // Rules compare addresses, and know no zones.
  if (version === 0 || address.includes('%'))
    throw invalidValue('address', 'an IP address without a zone (`%eth0`)', address);
  const family: Family = version === 4 ? 'ipv4' : 'ipv6';
  if (!wanted.includes(family))
    throw invalidValue('address', `of a family in 'families' (${wanted.join(', ')})`, address);
  return [family];
}

const NO_ROUTING = { fwmark: { value: 0, mask: 0 }, socketMark: 0, table: 0, priority: 0 } as const;
function parseRouting(options: PlanOptions): Pick<Plan, keyof typeof NO_ROUTING> {
  const fwmark = parseFwmark(options.fwmark ?? DEFAULT_FWMARK);
  const table = integer('table', options.table ?? DEFAULT_TABLE, 1, 0xffffffff);
  if (table >= 253 && table <= 255) throw outOfRange('table', 'none of 253, 254, 255 (default, main, local)', table);
  const priority = integer('priority', options.priority ?? DEFAULT_PRIORITY, 1, 32766 - PRIORITIES);
  return { fwmark, socketMark: fwmark.mask, table, priority };
}

/** What REDIRECT cannot do is refused, and why. */
function checkRedirect(options: Partial<PlanOptions>): void {
  const nothingMarked = 'nothing is marked or routed';
  const cannot = {
    udp: 'a redirected datagram does not tell where it was meant to go',
    ownHost: 'what the proxy itself sends could not be told from the rest',
    address: 'REDIRECT delivers to the address of the interface that a connection came in by: listen on every address',
    zone: 'it has no foreign address to connect from',
    fwmark: nothingMarked,
    table: nothingMarked,
    priority: nothingMarked,
  };
  for (const [option, why] of Object.entries(cannot))
    if (options[option as keyof typeof cannot] !== undefined)
      throw invalidValue(option, `left out with mode 'redirect' (${why})`, options[option as keyof typeof cannot]);
  if (options.tcp === undefined && options.port !== undefined)
    throw invalidValue('tcp', "given with mode 'redirect', which can do nothing else", options.tcp);
  if (options.onDown === 'open')
    throw invalidValue('onDown', "'closed' with mode 'redirect' (the kernel refuses what nobody accepts)", 'open');
}

function parseZone(zone: number | 'auto'): number {
  return zone === 'auto' ? DEFAULT_ZONE : integer('zone', zone, 1, 0xffff);
}

function parseFwmark(fwmark: Fwmark): Fwmark {
  if (typeof fwmark !== 'object' || fwmark === null) throw invalidType('fwmark', '{ value, mask }', fwmark);
  const mask = integer('fwmark.mask', fwmark.mask, 1, 0xffffffff);
  const value = integer('fwmark.value', fwmark.value, 1, 0xffffffff);
  // Two bits give three marks: deliver here (value), from this host (the rest), of our own sockets (both).
  const rest = (mask & ~value) >>> 0;
  if ((value & mask) >>> 0 !== value || rest === 0)
    throw outOfRange('fwmark.value', 'some, but not all, of the bits of fwmark.mask (such as 0x1 of 0x3)', fwmark);
  return { value, mask };
}

function parseLifetime({ lifetime = 'process', graceMs }: PlanOptions): Pick<Plan, 'lifetime' | 'graceMs'> {
  oneOf('lifetime', lifetime, ['process', 'permanent', 'persist']);
  if (lifetime === 'persist')
    return { lifetime, graceMs: integer('graceMs', graceMs ?? DEFAULT_GRACE_MS, 0, 0xffffffff) };
  if (graceMs !== undefined) throw invalidValue('graceMs', "given with lifetime: 'persist'", graceMs);
  return { lifetime };
}

/** Nobody's packet ever leaves iptables' TPROXY: who would have it is there, or it is dropped. */
function parseOnDown(backend: Plan['backend'], onDown?: Plan['onDown']): Plan['onDown'] {
  if (backend === 'iptables' && onDown === 'open')
    throw invalidValue(
      'onDown',
      "'closed' with backend 'iptables', whose TPROXY drops what nobody listens for. Backend 'nftables' can let it pass",
      onDown,
    );
  return oneOf('onDown', onDown ?? (backend === 'iptables' ? 'closed' : 'open'), ['open', 'closed']);
}

function checkForIptables({ name, mode, zone, lifetime, interfaces = [], ownHost }: PlanFacts): void {
  if (lifetime === 'persist')
    throw invalidValue(
      'lifetime',
      "'process' or 'permanent' with backend 'iptables', whose tables have no owner",
      lifetime,
    );
  if (mode === 'redirect') throw invalidValue('mode', "'tproxy' with backend 'iptables'", mode);
  if (zone !== undefined)
    throw invalidValue('zone', "left out with backend 'iptables', where the connection's mark knows both sides", zone);
  if (name.length > LONGEST_NAME)
    throw invalidValue(
      'name',
      `at most ${LONGEST_NAME} long with backend 'iptables', for its chains' names are short`,
      name,
    );
  for (const each of interfaces)
    if (each.endsWith('+') || each.startsWith('!'))
      throw invalidValue('interfaces: a name', "without `+` at its end or `!` in front with backend 'iptables'", each);
  for (const path of (ownHost?.cgroups ?? []).map(pathOf))
    if (Buffer.byteLength(path) > CGROUP_PATH_BYTES)
      throw invalidValue(
        'ownHost.cgroups: a cgroup',
        `at most ${CGROUP_PATH_BYTES} bytes long with backend 'iptables'`,
        path,
      );
}

function parseExclude(exclude: InterceptOptions['exclude'] = {}): Plan['exclude'] {
  checkOptions('exclude', exclude, ['from', 'to']);
  return {
    from: parsePrefixes('exclude.from', exclude.from ?? []),
    to: parsePrefixes('exclude.to', exclude.to ?? []),
  };
}

function parseOwnHost({ ownHost, tcp, udp, ids }: PlanOptions): OwnHost {
  if (!tcp && !udp) throw invalidValue('ownHost', 'given with tcp or udp: it widens what these intercept', ownHost);
  if (ownHost === true) return { users: [], cgroups: [] };
  if (typeof ownHost !== 'object' || ownHost === null)
    throw invalidType('ownHost', 'true or { users, cgroups }', ownHost);
  checkOptions('ownHost', ownHost, ['users', 'cgroups']);
  const { users = [], cgroups = [] } = ownHost;
  for (const [name, list] of Object.entries({ users, cgroups }))
    if (!Array.isArray(list)) throw invalidType(`ownHost.${name}`, 'a list', list);
  if (users.length + cgroups.length === 0) throw invalidValue('ownHost', 'true, or to name users or cgroups', ownHost);
  return {
    users: [...new Set(users)].map((user) => parseUser(user, ids)),
    cgroups: [...new Set(cgroups)].map((path) => parseCgroup(path, ids)),
  };
}

function parseUser(user: string | number, ids: HostIds | undefined): OwnHost['users'][number] {
  const number = typeof user === 'string' && /^\d+$/.test(user) ? Number(user) : user;
  if (typeof number === 'number')
    return { name: String(number), id: integer('ownHost.users: a user', number, 0, 0xfffffffe) };
  if (typeof number !== 'string' || !/^[A-Za-z_][A-Za-z0-9_.-]*\$?$/.test(number))
    throw invalidValue('ownHost.users: a user', "a user's name or number", user);
  const id = ids?.users[number];
  return { name: `"${number}"`, ...(id !== undefined && { id }) };
}

function parseCgroup(path: string, ids: HostIds | undefined): OwnHost['cgroups'][number] {
  // A path as in /proc/<pid>/cgroup, or without its first slash. The kernel counts levels from the root, which is 0.
  if (typeof path !== 'string' || !/^\/?[^/"\\\s]+(\/[^/"\\\s]+)*$/.test(path) || /(^|\/)\.\.?(\/|$)/.test(path))
    throw invalidValue('ownHost.cgroups: a cgroup', "a path below /sys/fs/cgroup, like 'system.slice/x.service'", path);
  const plain = path.replace(/^\//, '');
  const found = ids?.cgroups[path];
  return { path: found?.path ?? plain, level: plain.split('/').length, ...(found && { id: found.id }) };
}

function checkIds(ownHost: OwnHost | undefined): void {
  for (const { id, ...each } of [...(ownHost?.users ?? []), ...(ownHost?.cgroups ?? [])])
    if (id === undefined) throw invalidValue('ids', 'given for plan.nftables: they name each user and cgroup', each);
}

function parseInterfaces(interfaces: readonly string[]): readonly string[] {
  if (!Array.isArray(interfaces) || interfaces.length === 0)
    throw invalidType('interfaces', 'a list of interface names', interfaces);
  // IFNAMSIZ is 16 with its end; dev_valid_name() of net/core/dev.c forbids `/`, `:` and white space.
  for (const name of interfaces)
    if (typeof name !== 'string' || !/^[^\s/:"\\]{1,15}$/.test(name))
      throw invalidValue('interfaces: a name', 'an interface name of at most 15 characters', name);
  return [...new Set(interfaces)];
}

function integer(name: string, value: unknown, from: number, to: number): number {
  if (typeof value !== 'number') throw invalidType(name, 'a number', value);
  if (!Number.isInteger(value) || value < from || value > to)
    throw outOfRange(name, `an integer from ${from} to ${to}`, value);
  return value;
}

function oneOf<T extends string>(name: string, value: T, allowed: readonly T[]): T {
  if (!allowed.includes(value)) throw invalidValue(name, allowed.map((word) => `'${word}'`).join(' or '), value);
  return value;
}
