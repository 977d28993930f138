/**
 * The table that is there while a process, or a guard, deletes what killed ones have left. It goes with its owner. Who installs waits for
 * that, or would take for free what is just being deleted. Pure.
 */
import { unchecked } from '../netlink/check/schema.js';
import type { NftOperation, NftTable } from '../netlink/types.js';

export const CLEARING: NftTable = { kind: 'table', family: 'inet', name: 'linux-tproxy.clearing', flags: ['owner'] };
/** Only one at a time succeeds. */
export const beginClearing = unchecked<NftOperation[]>([{ verb: 'create', object: CLEARING }]);
export const endClearing = unchecked<NftOperation[]>([{ verb: 'delete', object: CLEARING }]);
export const isBeingCleared = (tables: readonly NftTable[]): boolean =>
  tables.some(({ family, name }) => family === CLEARING.family && name === CLEARING.name);
