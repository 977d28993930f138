/**
 * From one process to the next, over nothing but the kernel. Who wants a table that belongs to a process which lives (and
 * would leave it to others: `lifetime: 'persist'`) makes an empty table of its own beside it, which the kernel deletes should
 * its maker die. The owner is told of that, and lets go; the rules stay in force. If nobody has taken the table when the
 * request is gone, the owner takes it back.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { NetlinkError } from '../errors.js';
import type { NftablesSocket } from '../netlink/nftables.js';
import type { NftTable } from '../netlink/types.js';
import { type Kernel, nameInUse } from './host.js';

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
      await nftables.commit([{ verb: 'create', object: request }]).catch(unless('EEXIST'));
    if (performance.now() > until) {
      await nftables.commit([{ verb: 'delete', object: request }]).catch(unless('ENOENT', 'EPERM'));
      throw nameInUse(found);
    }
    await sleep(POLL_MS);
  }
}

/** Calls it when somebody asks for the table, or has asked already. What this gives ends it. */
export function hearRequests(nftables: NftablesSocket, table: NftTable, onRequest: () => void): () => void {
  const request = requestFor(table);
  const end = nftables.watch(
    (changes) => {
      const isAsking = changes.some(
        (change) => change.kind === 'lost' || change.operations.some(({ verb, object }) => verb === 'add' && object.kind === 'table'),
      );
      if (isAsking) look();
    },
    { table: request.name },
  );
  const look = () =>
    nftables.list('table').then(
      (tables) => tables.some(isSame(request)) && onRequest(),
      () => {}, // closed meanwhile
    );
  look();
  return end;
}

/** Lets go of the table, and gives who has it now; nobody: it has been taken back, or is gone. */
export async function handOver(kernel: Kernel, table: NftTable, open: () => NftablesSocket): Promise<{ readonly successor?: number; readonly gone?: true }> {
  const owned = kernel.nftables;
  kernel.nftables = open();
  await owned.generation(); // what was asked of it before has been done
  owned.close();
  const until = performance.now() + TAKING_MS;
  for (;;) {
    const tables = await kernel.nftables.list('table');
    const found = tables.find(isSame(table));
    if (!found) return { gone: true };
    if (found.owner !== undefined) return { successor: found.owner };
    if (performance.now() > until || !tables.some(isSame(requestFor(table)))) {
      const refused = await kernel.nftables.commit([{ verb: 'add', object: table }]).then(() => false, unless('EPERM'));
      if (!refused) return {};
    }
    await sleep(POLL_MS);
  }
}

function unless(...codes: string[]): (error: unknown) => true {
  return (error) => {
    if (error instanceof NetlinkError && codes.includes(error.code)) return true;
    throw error;
  };
}
