/**
 * What is there already: looks at the host, changes nothing. From it come the mark bits, routing table and priorities that
 * are free, and what is left over of processes of ours that died.
 */
import { InterceptError } from '../errors.js';
import { sequence } from '../netlink/sequence.js';
import type { Address, Link, NftExpression, NftTable, Route, Rule } from '../netlink/types.js';
import { decodeComment } from '../netlink/userdata.js';
import type { Family, Fwmark } from '../types.js';
import type { Kernel } from './kernel.js';
import { namesInMangle } from './mangle.js';
import { lookUpIds } from './names.js';
import { type Claim, parseClaim } from './nftables.js';
import { ownerOf, ownerText } from './owner.js';
import { nameOfTable, nftTableOf, type PlanOptions } from './plan.js';
import { PRIORITIES, ROUTE_PROTOCOL } from './routing.js';

/** Everything that decides what is free; `generation` is that of the rule set it was read from. */
export interface HostState {
  readonly generation: number;
  readonly rules: readonly Rule[];
  readonly claims: readonly Claim[];
  readonly tables: readonly NftTable[];
  /** Chains of ours in iptables' table that belong to these names. */
  readonly inMangle: readonly string[];
  /** Mark bits that the host's nf_tables rules read or write. */
  readonly markBits: number;
  readonly links: readonly Link[];
  readonly addresses: readonly Address[];
  /** Of all routing tables, or of this one. */
  readonly routing: { readonly table: number | undefined; readonly routes: readonly Route[] };
}

/** `table`: of routes only those in it. */
export async function lookAtHost({ route, nftables }: Kernel, table?: number): Promise<HostState> {
  // Policy rules and routes before tables: whoever made one of ours had claimed it by a table before. So one without a claim
  // is stale.
  const [{ id: generation }, rules, routes, chains, tables, nftRules, links, addresses] = await Promise.all(
    sequence(() => [
      nftables.generation(),
      route.ruleList(),
      route.routeList(table === undefined ? {} : { table }),
      nftables.list('chain'),
      nftables.list('table'),
      nftables.list('rule'),
      route.linkList(),
      route.addressList(),
    ]),
  );
  const markBits = nftRules.reduce((bits, rule) => bits | markBitsOf(rule.expressions), 0) >>> 0;
  const inMangle = namesInMangle(chains);
  const claims = tables.flatMap(claimOf);
  return { generation, rules, inMangle, tables, claims, markBits, links, addresses, routing: { table, routes } };
}

const routesOf = async ({ route }: Kernel, { routing }: Pick<HostState, 'routing'>, table: number) =>
  routing.table === table ? routing.routes : route.routeList({ table });

export function claimOf(table: NftTable): Claim[] {
  if (nameOfTable(table.name) === undefined) return [];
  const claim = parseClaim(decodeComment(table.userdata) ?? '');
  return claim ? [claim] : [];
}

/** A table that is there for the next process of its name to take over (`lifetime: 'persist'`). */
export interface Predecessor {
  readonly table: NftTable;
  readonly claim: Claim;
}

export function predecessorOf({ tables }: HostState, nftTable: string): Predecessor | undefined {
  const table = tables.find(({ family, name }) => family === 'inet' && name === nftTable);
  const [claim] = table?.flags?.includes('persist') ? claimOf(table) : [];
  return table && claim && { table, claim };
}

// ---- left over ----------------------------------------------------------------------------------------------------------

/** Our policy rules (by protocol and form) that no table claims: the process that made them was killed. */
export function staleRules({ rules, claims }: HostState): Rule[] {
  return rules.filter(
    (rule) => rule.protocol === ROUTE_PROTOCOL && rule.fwmark !== undefined && !isClaimed(claims, rule),
  );
}

/** Names whose chains in iptables' table no table claims. */
export function staleNames({ inMangle, tables }: Pick<HostState, 'inMangle' | 'tables'>): string[] {
  return inMangle.filter(
    (name) => !tables.some((table) => nameOfTable(table.name) === name && claimOf(table).length > 0),
  );
}

export function isClaimed(claims: readonly Claim[], { priority = 0 }: Rule): boolean {
  return claims.some((claim) => priority >= claim.priority && priority < claim.priority + PRIORITIES);
}

/** Our routes in the tables which those rules, or an interrupted removal, have left behind. */
export async function staleRoutes(kernel: Kernel, host: HostState, stale: readonly Rule[]): Promise<Route[]> {
  const { table } = host.routing;
  const candidates = new Set([
    ...(table === undefined ? [] : [table]),
    ...stale.flatMap((rule) => (rule.action === 'lookup' && rule.table ? [rule.table] : [])),
  ]);
  const routes = await Promise.all(
    [...candidates]
      .filter((each) => !host.claims.some((claim) => claim.table === each))
      .map((each) => routesOf(kernel, host, each)),
  );
  return routes.flat().filter((each) => each.protocol === ROUTE_PROTOCOL && each.type === 'local');
}

// ---- what is free -------------------------------------------------------------------------------------------------------

/** Options in the place of those that were given; without `zone` none is needed. */
export type Decided = Pick<PlanOptions, 'families' | 'fwmark' | 'table' | 'priority' | 'ids' | 'zone'>;

/** Mark, table, priority and families that are free, or the predecessor's, and work on this host. */
export async function decide(
  kernel: Kernel,
  host: HostState,
  given: PlanOptions,
  predecessor?: Predecessor,
): Promise<Decided> {
  // One with mode `redirect` has no numbers.
  const old = predecessor?.claim.fwmark.mask === 0 ? undefined : predecessor?.claim;
  const options = old ? { fwmark: old.fwmark, table: old.table, priority: old.priority, ...given } : given;
  const families = options.families ?? familiesOf(host);
  checkInterfaces(host, options.interfaces ?? []);
  if (!predecessor) checkName(host, nftTableOf(options));
  // Claimed is in use, also where its rule or route is missing at the moment.
  const claimed = host.claims.flatMap(({ fwmark, table, priority }) =>
    Array.from({ length: PRIORITIES }, (_, index) => ({ fwmark, table, priority: priority + index })),
  );
  const rules = [...host.rules, ...claimed];
  if (options.mode === 'redirect') return { families };
  const { markBits, routing } = host;
  const { zone, fwmark, table, priority } = options;
  const keepsMark = old && fwmark?.value === old.fwmark.value && fwmark.mask === old.fwmark.mask;
  const decided: { -readonly [K in keyof Decided]: Decided[K] } = {
    families,
    priority: old && priority === old.priority ? priority : freePriority(rules, priority),
    fwmark: keepsMark ? fwmark : freeFwmark({ markBits, rules }, fwmark),
    table: old && table === old.table ? table : await freeTable(kernel, { routing, rules }, table),
    ids: lookUpIds(options.ownHost),
  };
  if (zone !== undefined && (zone !== 'auto' || (await usesConntrack(kernel)))) decided.zone = zone;
  return decided;
}

/** Whether the host's rules (also iptables', nft variant) make the kernel track connections. */
async function usesConntrack({ nftables }: Kernel): Promise<boolean> {
  if ((await nftables.list('chain')).some(({ type }) => type === 'nat')) return true;
  return (await nftables.list('rule')).some(({ expressions }) =>
    expressions.some((each) => each.kind === 'ct' || ('name' in each && CONNTRACK_NAMES.test(each.name))),
  );
}
/** Of expressions, and of iptables' matches and targets. */
const CONNTRACK_NAMES = /^(flow_offload|connlimit|synproxy|conntrack|state|connmark|connbytes|CONNMARK|CT|SYNPROXY)$/;

/** IFF_UP of linux/if.h. */
export const isUp = ({ flags }: Pick<Link, 'flags'>): boolean => (flags & 1) !== 0;
export const LOOPBACK_DOWN =
  'The loopback interface is down, and intercepted traffic is delivered through it: `ip link set lo up`';

/** The families that the loopback interface speaks: IPv6 may be disabled. */
function familiesOf({ links, addresses }: HostState): Family[] {
  const lo = links.find(({ name }) => name === 'lo');
  if (!lo || !isUp(lo)) throw new InterceptError('ERR_TPROXY_UNSUPPORTED', LOOPBACK_DOWN, 'check');
  return (['ipv4', 'ipv6'] as const).filter((family) =>
    addresses.some((address) => address.linkIndex === lo.index && address.family === family),
  );
}

function checkInterfaces({ links }: HostState, interfaces: readonly string[]): void {
  const names = links.map(({ name }) => name);
  for (const name of interfaces)
    if (!names.includes(name))
      throw new InterceptError(
        'ERR_TPROXY_NO_INTERFACE',
        `There is no interface '${name}' here, only ${names.join(', ')}. It may go and come back later, but has to be there now; left out, interfaces means all, those that appear later included`,
        'check',
      );
}

function checkName({ tables }: HostState, nftTable: string): void {
  const taken = tables.find(({ family, name }) => family === 'inet' && name === nftTable);
  if (taken) throw nameInUse(taken);
}

export function nameInUse(table: NftTable): InterceptError {
  return new InterceptError(
    'ERR_TPROXY_NAME_IN_USE',
    `The table 'inet ${table.name}' exists already: ${remedyFor(table)}, or choose another \`name\``,
    'check',
  );
}

function remedyFor(table: NftTable): string {
  if (table.owner !== undefined)
    return `it is held by ${ownerText(ownerOf(table.owner))}${table.flags?.includes('persist') ? ', which does not hand it over' : ''}. Stop that process`;
  if (claimOf(table).length === 0)
    return `it belongs to no running process. Remove it with \`nft delete table inet ${table.name}\``;
  const name = nameOfTable(table.name);
  if (table.flags?.includes('persist'))
    return `a process that has ended left it to the next one. Take it over with \`lifetime: 'persist'\`, remove it with \`linux-tproxy down --name ${name}\``;
  return `it belongs to no running process. Remove it with \`linux-tproxy down --name ${name}\``;
}

/** Two adjacent bits of the mark that no policy rule and no nf_tables rule looks at. */
export function freeFwmark(
  host: Pick<HostState, 'markBits'> & { readonly rules: readonly Pick<Rule, 'fwmark'>[] },
  wanted?: Fwmark,
): Fwmark {
  const used = (host.rules.reduce((bits, { fwmark }) => bits | bitsOf(fwmark), 0) | host.markBits) >>> 0;
  if (wanted) {
    if (wanted.mask & used)
      throw new InterceptError(
        'ERR_TPROXY_MARK_IN_USE',
        `fwmark ${show(wanted.value)}/${show(wanted.mask)} shares bits with marks that are in use here (bits ${show(used)}, see \`ip rule\` and \`nft list ruleset\`). Leave fwmark out to have free bits chosen`,
        'check',
      );
    return wanted;
  }
  for (let shift = 0; shift < 31; shift++) {
    const mask = (0x3 << shift) >>> 0;
    if ((mask & used) === 0) return { value: (0x1 << shift) >>> 0, mask };
  }
  throw new InterceptError(
    'ERR_TPROXY_MARK_IN_USE',
    `No two adjacent bits of the mark are free on this host (in use: ${show(used)}). Name two that may be shared with the fwmark option`,
    'check',
  );
}

/** A rule without a mask compares the whole mark: the bits of its value are taken, not all 32. */
function bitsOf(fwmark: Fwmark | undefined): number {
  if (!fwmark) return 0;
  return fwmark.mask === 0xffffffff ? fwmark.value : fwmark.mask;
}

/** Four consecutive priorities with no rule at them, by preference the classical place or one in front of it. */
export function freePriority(rules: readonly Pick<Rule, 'priority'>[], wanted?: number): number {
  const used = new Set(rules.map(({ priority }) => priority ?? 0));
  const isFree = (start: number) => {
    for (let each = start; each < start + PRIORITIES; each++) if (used.has(each)) return false;
    return true;
  };
  if (wanted !== undefined) {
    if (isFree(wanted)) return wanted;
    throw new InterceptError(
      'ERR_TPROXY_PRIORITY_IN_USE',
      `Of the priorities ${wanted} to ${wanted + PRIORITIES - 1} some are in use (see \`ip rule\` and \`ip -6 rule\`). Leave priority out to have free ones chosen`,
      'check',
    );
  }
  for (let start = 97; start >= 1; start--) if (isFree(start)) return start;
  for (let start = 98; start < 32766 - PRIORITIES; start++) if (isFree(start)) return start;
  throw new InterceptError(
    'ERR_TPROXY_PRIORITY_IN_USE',
    'No four consecutive policy rule priorities are free',
    'check',
  );
}

async function freeTable(
  kernel: Kernel,
  host: Pick<HostState, 'routing'> & { readonly rules: readonly Pick<Rule, 'table'>[] },
  wanted?: number,
): Promise<number> {
  const isFree = async (table: number) =>
    !host.rules.some((rule) => rule.table === table) && (await routesOf(kernel, host, table)).length === 0;
  if (wanted !== undefined) {
    if (await isFree(wanted)) return wanted;
    throw new InterceptError(
      'ERR_TPROXY_TABLE_IN_USE',
      `Routing table ${wanted} is in use (see \`ip rule\` and \`ip route show table ${wanted}\`). Leave table out to have a free one chosen`,
      'check',
    );
  }
  for (let table = 100; table < 252; table++) if (await isFree(table)) return table;
  throw new InterceptError(
    'ERR_TPROXY_TABLE_IN_USE',
    'No routing table from 100 to 251 is free: name one with the table option',
    'check',
  );
}

/**
 * The mark bits, of packets and connections, that one rule compares or sets: of `meta mark & 0xff == 5` those of 0xff, of `meta mark set mark | 0x10`
 * those that are not kept, of a plain value its own. iptables' (nft variant) MARK, mark and TPROXY likewise.
 */
export function markBitsOf(expressions: readonly NftExpression[]): number {
  let bits = 0;
  const isMark = (each: NftExpression | undefined) =>
    (each?.kind === 'meta' || each?.kind === 'ct') && each.key === 'mark' ? each : undefined;
  if (expressions.some(isMark))
    expressions.forEach((each, index) => {
      const sets = isMark(expressions[index + 1])?.sreg !== undefined;
      if (each.kind === 'bitwise' && each.length === 4)
        bits |= sets ? ~word(each.mask) | word(each.xor) : word(each.mask);
      else if (each.kind === 'immediate' && each.data.length === 4 && sets) bits |= word(each.data);
      else if (each.kind === 'cmp' && each.data.length === 4) {
        if (isMark(expressions[index - 1])) bits |= word(each.data);
      }
    });
  for (const each of expressions)
    if (each.kind === 'match' || each.kind === 'target') {
      const [first, second] = [word(each.info, 0), word(each.info, 4)];
      // struct xt_mark_tginfo2 and xt_mark_mtinfo1 are { mark, mask }, struct xt_tproxy_target_info_v1 { mask, value }.
      // The connection's likewise, where it is not the packet's as it is: xt_connmark_mtinfo1, xt_connmark_tginfo2.
      const isMarks =
        ['MARK', 'mark', 'connmark'].includes(each.name) || (each.name === 'CONNMARK' && each.info[14] === 0);
      if (isMarks) bits |= bitsOf({ value: first, mask: second });
      if (each.name === 'TPROXY') bits |= bitsOf({ value: second, mask: first });
    }
  return bits >>> 0;
}

/** Marks, and connections' states, are 32-bit numbers in host byte order. */
export function word(data: Uint8Array, offset = 0): number {
  if (data.length < offset + 4) return 0;
  return new Uint32Array(data.slice(offset, offset + 4).buffer)[0] as number;
}

const show = (value: number) => `0x${value.toString(16)}`;
