/**
 * From one process to the next, over nothing but the kernel. Who wants a table that belongs to a process which lives (and
 * would leave it to others: `lifetime: 'persist'`) makes an empty table of its own beside it, which the kernel deletes should
 * its maker die. The owner is told of that, and lets go; the rules stay in force. If nobody has taken the table when the
 * request is gone, the owner takes it back. (A process that was killed has let go, too.)
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { NetlinkError } from '../errors.js';
import type { NftablesSocket } from '../netlink/nftables.js';
import type { NftOperation, NftTable } from '../netlink/types.js';
import { atStep, ignoring } from './attempt.js';
import { type Content, isDynamic, readContents, succession } from './contents.js';
import type { Guarding } from './guard.js';
import { nameInUse, type Predecessor } from './host.js';
import { findRoutingLosses, type RoutingLoss, routingLosses } from './intact.js';
import type { Kernel } from './kernel.js';
import type { Plan } from './plan.js';
import { routingOf } from './routing.js';
import { contentsOf } from './sets.js';
import { restore } from './watch.js';

/** How long to ask before the process that has it is said not to hand it over. */
const PATIENCE_MS = 5_000;
/** How long whoever asked may take to take it. */
const TAKING_MS = 10_000;
const POLL_MS = 3;

/** No interception can have this name. */
export const requestFor = ({ family, name }: NftTable): NftTable => ({
  kind: 'table',
  family,
  name: `${name}/next`,
  flags: ['owner'],
});

const isSame = (one: NftTable) => (other: NftTable) => one.family === other.family && one.name === other.name;

/** Until it belongs to nobody. The request stays, and is to be deleted together with the taking over. */
export async function askFor({ nftables }: Kernel, table: NftTable): Promise<void> {
  const request = requestFor(table);
  const until = performance.now() + PATIENCE_MS;
  for (;;) {
    const tables = await nftables.list('table');
    const found = tables.find(isSame(table));
    if (found?.owner === undefined) return;
    // Somebody else may be asking: it is that one's turn.
    if (!tables.some(isSame(request)))
      await ignoring(['EEXIST', 'EPERM'], nftables.commit([{ verb: 'create', object: request }]));
    if (performance.now() > until) {
      await ignoring(['ENOENT', 'EPERM'], nftables.commit([{ verb: 'delete', object: request }]));
      throw nameInUse(found);
    }
    await sleep(POLL_MS);
  }
}

/**
 * Makes a predecessor's table that of a plan, in one batch; routing first, and what is not needed any more last, so that at no
 * moment is anything missing. Gives what the sets had in them.
 */
export async function takeOver(
  kernel: Kernel,
  plan: Plan,
  { table, claim }: Predecessor,
  guarding: Guarding,
): Promise<readonly Content[]> {
  const { route, nftables } = kernel;
  const remove = async (each: RoutingLoss) =>
    each.kind === 'rule'
      ? ignoring(['ENOENT'], route.ruleDelete(each.rule))
      : ignoring(['ESRCH', 'ENOENT'], route.routeDelete(each.route));
  const missing = await findRoutingLosses(kernel, plan);
  try {
    const kept = await readContents(nftables, table, (set) => !isDynamic(set));
    await guarding.renew();
    for (const each of missing) await restore(kernel, each);
    const request = (await nftables.list('table')).find(isSame(requestFor(table)));
    const answered: NftOperation[] = request?.owner === nftables.portId ? [{ verb: 'delete', object: request }] : [];
    await nftables.commit([...(await succession(nftables, plan, table, contentsOf(plan, kept))), ...answered]);
    for (const each of routingLosses(routingOf(claim), plan)) await remove(each);
    return kept;
  } catch (error) {
    guarding.end();
    for (const each of missing.reverse()) await remove(each).catch(() => {});
    throw atStep('takeover', error);
  }
}

/** Calls it when somebody asks for the table, or has asked already. What this gives ends it. */
export function hearRequests(nftables: NftablesSocket, table: NftTable, onRequest: () => void): () => void {
  const request = requestFor(table);
  const end = nftables.watch(
    (changes) => {
      const isAsking = changes.some(
        (change) => change.kind === 'lost' || change.operations.some(({ verb }) => verb !== 'delete'),
      );
      if (isAsking) look();
    },
    { table: request.name },
  );
  const look = () => {
    void nftables.list('table').then(
      (tables) => tables.some(isSame(request)) && onRequest(),
      () => {}, // closed meanwhile
    );
  };
  look();
  return end;
}

/** Lets go of the table, and gives the netlink port of who has it now; nothing: it has been taken back. */
export async function handOver(
  kernel: Kernel,
  table: NftTable,
  make: { readonly open: () => NftablesSocket; readonly remake: () => NftOperation[] },
): Promise<number | undefined> {
  const owned = kernel.nftables;
  await owned.generation(); // what was asked of it before has been done
  kernel.nftables = make.open();
  await owned.close();
  const until = performance.now() + TAKING_MS;
  for (;;) {
    const tables = await kernel.nftables.list('table');
    const found = tables.find(isSame(table));
    if (found?.owner !== undefined) return found.owner;
    if (performance.now() > until || !tables.some(isSame(requestFor(table)))) {
      try {
        await kernel.nftables.commit(found ? [{ verb: 'add', object: table }] : make.remake());
        return undefined;
      } catch (error) {
        // Somebody was faster.
        if (!(error instanceof NetlinkError && error.code === 'EPERM')) throw error;
      }
    }
    await sleep(POLL_MS);
  }
}
