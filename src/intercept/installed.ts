/**
 * What is installed on a host, by whatever process: finds it by the claims in our tables' comments, tells it, takes it
 * down. Also what processes that were killed have left.
 */
import { checkOptions, InterceptError, NetlinkError } from '../errors.js';
import type { NftExpression, NftRule, NftSet, NftTable, Route, Rule } from '../netlink/types.js';
import { decodeComment, encodeComment } from '../netlink/userdata.js';
import type { Family, Fwmark } from '../types.js';
import { ignoring, untilQuiet } from './attempt.js';
import { backendOf, readMangle } from './backend.js';
import { type Counters, commentOf, sumCounters } from './counters.js';
import { claimOf, type HostState, lookAtHost, staleNames, staleRules } from './host.js';
import { routingLosses } from './intact.js';
import type { Kernel } from './kernel.js';
import { closeKernel, openKernel } from './kernel.js';
import { commentOfRule, listenerOfMangle, nameOfChain, setsOfMangle, sizeOfMangle } from './mangle.js';
import { type Claim, leaving } from './nftables.js';
import { type Owner, ownerOf, ownerText } from './owner.js';
import { nameOfTable, type Plan } from './plan.js';
import { addressRange, formatRange, fromBytes, portRange, type RangeType, rangesOfElements } from './ranges.js';
import { reap, takeOut } from './reap.js';
import { ROUTE_PROTOCOL, routingOf } from './routing.js';
import { counted } from './ruleset.js';
import { datatype } from './statement.js';

export { type Owner, ownerText } from './owner.js';

/** One interception as the kernel has it. */
export interface Installed {
  readonly name: string;
  readonly backend: 'nftables' | 'iptables';
  readonly nftTable: string;
  readonly lifetime: Plan['lifetime'];
  /** Who owns the table. Missing where `lifetime` is `persist`: an orphan, left for the next process of this name. */
  readonly owner?: Owner;
  readonly families: readonly Family[];
  /** Where the proxy listens; missing where nothing is intercepted, only diverted. */
  readonly port?: number;
  readonly address?: string;
  /** Whether it intercepts what this host itself sends. */
  readonly ownHost: boolean;
  readonly mode: 'tproxy' | 'redirect';
  readonly onDown: 'open' | 'closed';
  /** With mode `redirect` there are no marks and policy rules: 0. */
  readonly fwmark: Fwmark;
  readonly table: number;
  /** First of the four. */
  readonly priority: number;
  /** The elements of its sets as `nft` prints them, by the set's name: `tcp_ports`, `exclude_to4`, ... */
  readonly sets: Readonly<Record<string, readonly string[]>>;
  readonly counters: Counters;
  readonly intact: boolean;
  /** What is not there any more, in words. */
  readonly missing: readonly string[];
}

/** Policy rules and routes of ours that belong to no table: their process was killed. Without its marks they do nothing. */
export interface Leftovers {
  /** Names of interceptions that have chains in iptables' table `mangle` still, which go on dropping what nobody listens for. */
  readonly chains: readonly string[];
  readonly rules: readonly Rule[];
  readonly routes: readonly Route[];
}

export interface UninstallOptions {
  /** Which interception. Left out: none, only what killed processes have left. */
  readonly name?: string;
  /** Path of the network namespace to work in. */
  readonly netns?: string;
}

/**
 * Every interception on this host, of this process or any other, and what is left over. Changes nothing.
 * Equivalent to: `nft list ruleset; ip rule; ip route show table all`, and reading them. Needs CAP_NET_ADMIN.
 */
export async function listInstalled(
  options: Pick<UninstallOptions, 'netns'> = {},
): Promise<{ readonly installed: readonly Installed[]; readonly leftovers: Leftovers }> {
  checkOptions('listInstalled', options, ['netns']);
  const kernel = openKernel(options.netns);
  try {
    return await untilQuiet(async () => {
      const { host, routes } = await look(kernel);
      const installed = await Promise.all(
        host.tables.flatMap((table) =>
          claimOf(table).map((claim) => describe(kernel, host, routes, table, claim).catch(ifGone)),
        ),
      );
      return { installed: installed.filter((each) => each !== undefined), leftovers: leftoversOf(host, routes) };
    });
  } finally {
    closeKernel(kernel);
  }
}

/**
 * Takes down what was installed with `lifetime: 'permanent'`, by whichever process, or left by one with `persist`, and
 * removes what killed processes have left. A process that installed it, and looks after it, is told (`uninstalled`). Gives whether there was an interception of that name; that there is none is no error.
 * Equivalent to: `nft flush`ing its table, `ip rule del` and `ip route del` of what belongs to it, `nft delete table`.
 *
 * @throws {InterceptError} `ERR_TPROXY_OWNED`: it belongs to a process that runs
 */
export async function uninstallIntercept(options: UninstallOptions = {}): Promise<boolean> {
  checkOptions('uninstallIntercept', options, ['name', 'netns']);
  const kernel = openKernel(options.netns);
  const { name } = options;
  try {
    const found = name !== undefined && (await untilQuiet(() => takeDown(kernel, name)));
    await untilQuiet(async () => {
      const { host, routes } = await look(kernel);
      const leftovers = leftoversOf(host, routes);
      const names = leftovers.chains;
      if (names.length + leftovers.rules.length + leftovers.routes.length > 0)
        await reap(kernel, { names, ...leftovers });
    });
    return found;
  } finally {
    closeKernel(kernel);
  }
}

/** The claim goes last, so that until then nobody takes the rest for left over, or for free. */
async function takeDown(kernel: Kernel, name: string): Promise<boolean> {
  const { nftables, route } = kernel;
  const table = await emptyTable(kernel, name);
  if (!table) return false;
  for (const { rules, routes } of claimOf(table).map(routingOf)) {
    for (const rule of [...rules].reverse()) await ignoring(['ENOENT'], route.ruleDelete(rule));
    for (const each of [...routes].reverse()) await ignoring(['ESRCH', 'ENOENT'], route.routeDelete(each));
  }
  await ignoring(['ENOENT'], nftables.commit([{ verb: 'delete', object: table }]));
  return true;
}

async function emptyTable(kernel: Kernel, name: string): Promise<NftTable | undefined> {
  const tables = await kernel.nftables.list('table');
  const table = tables.find((each) => nameOfTable(each.name) === name && claimOf(each).length > 0);
  if (!table) return undefined;
  if (table.owner !== undefined)
    throw new InterceptError(
      'ERR_TPROXY_OWNED',
      `The table 'inet ${table.name}' belongs to ${ownerText(ownerOf(table.owner))}, which is running: ${table.flags?.includes('persist') ? 'end that first' : 'it goes when that ends'}`,
    );
  const { kind, family, userdata } = table;
  const comment = leaving(decodeComment(userdata) ?? '');
  const empty: NftTable = { kind, family, name: table.name, userdata: encodeComment(comment) };
  await takeOut(kernel, [
    [
      { verb: 'delete', object: empty },
      { verb: 'create', object: empty },
    ],
  ]);
  for (const claim of claimOf(table)) await takeOut(kernel, await backendOf(claim).unmake(kernel, { name }, empty));
  return empty;
}

async function look(kernel: Kernel): Promise<{ host: HostState; routes: readonly Route[] }> {
  const host = await lookAtHost(kernel);
  const routes = host.routing.routes.filter(({ protocol, type }) => protocol === ROUTE_PROTOCOL && type === 'local');
  return { routes, host };
}

function leftoversOf(host: HostState, routes: readonly Route[]): Leftovers {
  return {
    chains: staleNames(host),
    rules: staleRules(host),
    routes: routes.filter(({ table }) => !host.claims.some((claim) => claim.table === table)),
  };
}

/** A table may go while it is being read. */
function ifGone(error: unknown): undefined {
  if (!(error instanceof NetlinkError && error.code === 'ENOENT')) throw error;
}

// ---- telling ------------------------------------------------------------------------------------------------------------

async function describe(
  kernel: Kernel,
  { rules }: HostState,
  routes: readonly Route[],
  table: NftTable,
  claim: Claim,
): Promise<Installed> {
  const { lost, ...said } = await (claim.backend === 'iptables' ? mangleSays : tableSays)(kernel, table, claim);
  const missing = [...routingLosses(routingOf(claim), { rules, routes }).map(({ what }) => what), ...lost];
  return {
    name: nameOfTable(table.name) as string,
    backend: claim.backend,
    nftTable: table.name,
    lifetime: table.flags?.includes('persist') ? 'persist' : table.owner === undefined ? 'permanent' : 'process',
    ...(table.owner !== undefined && { owner: ownerOf(table.owner) }),
    families: claim.families,
    ownHost: claim.ownHost,
    mode: modeOf(claim),
    fwmark: claim.fwmark,
    table: claim.table,
    priority: claim.priority,
    ...said,
    intact: missing.length === 0,
    missing,
  };
}

const modeOf = ({ fwmark }: Claim) => (fwmark.mask === 0 ? 'redirect' : 'tproxy');

/** What its rules tell; `lost`: which of them are missing. */
type Said = Pick<Installed, 'port' | 'address' | 'onDown' | 'sets' | 'counters'> & { readonly lost: readonly string[] };

async function tableSays({ nftables }: Kernel, { family, name: table }: NftTable, claim: Claim): Promise<Said> {
  const ofTable = { family, table };
  const nftRules = await nftables.list('rule', ofTable);
  const sets = (await nftables.list('set', ofTable)).filter(({ flags }) => !flags?.includes('anonymous'));
  // What `onDown: 'closed'` adds may have come or gone since.
  const dropping = nftRules.filter((rule) => commentOf(rule) === counted.dropped).length;
  const whole = claim.rules + dropping;
  return {
    ...listenerOf(nftRules),
    onDown: dropping > 0 || modeOf(claim) === 'redirect' ? 'closed' : 'open',
    sets: Object.fromEntries(
      await Promise.all(
        // What the kernel itself puts into a set is connections, which come and go.
        sets
          .filter(({ flags }) => !flags?.includes('eval'))
          .map(async (set) => {
            const [contents] = await nftables.list('elements', { ...ofTable, set: set.name });
            return [set.name, elementTexts(set, contents?.elements ?? [])] as const;
          }),
      ),
    ),
    counters: sumCounters(nftRules),
    lost: nftRules.length === whole ? [] : [`rules in table inet ${table}: ${nftRules.length} of ${whole}`],
  };
}

async function mangleSays(kernel: Kernel, table: NftTable, claim: Claim): Promise<Said> {
  const name = nameOfTable(table.name) as string;
  const mangle = await readMangle(kernel);
  const rules = mangle.rules.filter(({ chain }) => nameOfChain(chain) === name);
  const size = sizeOfMangle(name, mangle);
  return {
    ...listenerOfMangle(rules),
    onDown: 'closed',
    sets: setsOfMangle(name, mangle),
    counters: sumCounters(rules, commentOfRule),
    lost:
      size === claim.rules ? [] : [`chains of table mangle, and rules that lead into them: ${size} of ${claim.rules}`],
  };
}

/** Where the table's tproxy or redir expressions deliver to: port and address are loaded into registers before. */
function listenerOf(rules: readonly NftRule[]): { port?: number; address?: string } {
  for (const { expressions } of rules) {
    const target = expressions.find((each) => each.kind === 'tproxy' || each.kind === 'redir');
    if (!target) continue;
    const loaded = (register: number | undefined) =>
      expressions.find((each): each is Extract<NftExpression, { kind: 'immediate' }> => {
        return each.kind === 'immediate' && each.dreg === register;
      })?.data;
    const port = loaded(target.kind === 'tproxy' ? target.regPort : target.regProtoMin);
    const address = target.kind === 'tproxy' && target.regAddr !== undefined ? loaded(target.regAddr) : undefined;
    return {
      ...(port && { port: Number(fromBytes(port)) }),
      ...(address && { address: addressText(address) }),
    };
  }
  return {};
}

function addressText(bytes: Uint8Array): string {
  const value = fromBytes(bytes);
  return formatRange(addressRange(bytes.length === 4 ? 'ipv4' : 'ipv6'), { start: value, end: value });
}

const rangeTypes: ReadonlyMap<number, RangeType> = new Map([
  [datatype.inet_service.number, portRange],
  [datatype.ipv4_addr.number, addressRange('ipv4')],
  [datatype.ipv6_addr.number, addressRange('ipv6')],
]);

function elementTexts(set: NftSet, elements: Parameters<typeof rangesOfElements>[1]): string[] {
  const type = rangeTypes.get(set.keyType);
  if (type && set.flags?.includes('interval'))
    return rangesOfElements(type, elements).map((range) => formatRange(type, range));
  if (set.keyType === datatype.ifname.number)
    return elements.map(({ key }) => Buffer.from(key).toString('latin1').replace(/\0.*$/, ''));
  return elements.map(({ key }) => `0x${Buffer.from(key).toString('hex')}`);
}
