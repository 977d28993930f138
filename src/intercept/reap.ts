/** Removes from the host what killed processes of ours have left, and what an interception has put there. */
import { InterceptError } from '../errors.js';
import { sequence } from '../netlink/sequence.js';
import type { NftOperation, Route, Rule } from '../netlink/types.js';
import { ignoring } from './attempt.js';
import { unmakeMangle } from './backend.js';
import { beginClearing, CLEARING, endClearing, isBeingCleared } from './clearing.js';
import { claimOf, type HostState, isClaimed, lookAtHost, staleNames, staleRoutes, staleRules } from './host.js';
import type { Kernel } from './kernel.js';
import { namesInMangle } from './mangle.js';

/** Gives the host without what is left over in it. */
export async function clearAway(kernel: Kernel, table: number): Promise<HostState> {
  const host = await lookAtHost(kernel, table);
  const stale = staleRules(host);
  const routes = await staleRoutes(kernel, host, stale);
  const names = staleNames(host);
  if (stale.length + routes.length + names.length === 0 && !isBeingCleared(host.tables)) return host;
  await reap(kernel, { names, rules: stale, routes });
  return lookAtHost(kernel, table);
}

/**
 * Removes what killed processes have left, if nobody has claimed it by now: another process may have reaped it before, and have put the
 * very same rule into its place. Nobody can claim it meanwhile. Throws what `untilQuiet` takes for a race while another one does this.
 */
export async function reap(
  kernel: Kernel,
  { names, rules, routes }: { names: readonly string[]; rules: readonly Rule[]; routes: readonly Route[] },
): Promise<void> {
  const { route, nftables } = kernel;
  await nftables.commit(beginClearing).catch((error) => {
    // EPERM: it belongs to another one. EEXIST: to this process, which does the same for another interception.
    throw ['EPERM', 'EEXIST'].includes(error.code)
      ? new InterceptError('ERR_TPROXY_INSTALL', BUSY, 'table', error)
      : error;
  });
  try {
    const [chains, tables] = await Promise.all(sequence(() => [nftables.list('chain'), nftables.list('table')]));
    const stale = staleNames({ inMangle: namesInMangle(chains), tables });
    for (const name of names) if (stale.includes(name)) await takeOut(kernel, await unmakeMangle(kernel, name));
    const claims = tables.flatMap(claimOf);
    for (const rule of rules) if (!isClaimed(claims, rule)) await ignoring(['ENOENT'], route.ruleDelete(rule));
    for (const each of routes)
      if (!claims.some(({ table }) => table === each.table))
        await ignoring(['ESRCH', 'ENOENT'], route.routeDelete(each));
  } finally {
    await ignoring(['ENOENT'], nftables.commit(endClearing));
  }
}
const BUSY = `Another process deletes what killed ones have left. If it hangs, end it: \`nft list table inet ${CLEARING.name}\` names it`;

/** What is gone already is no error, nor what somebody else has begun to use. */
export async function takeOut({ nftables }: Kernel, batches: readonly NftOperation[][]): Promise<void> {
  for (const batch of batches) await ignoring(['ENOENT', 'EBUSY'], nftables.commit(batch));
}
