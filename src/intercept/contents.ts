/**
 * Tables that are there already, made anew in one batch with what their sets hold: after somebody has changed one, and when
 * one process takes it over from another. Only reads.
 */
import type { NftablesSocket } from '../netlink/nftables.js';
import type { NftChain, NftElement, NftElements, NftOperation, NftSet, NftTable } from '../netlink/types.js';
import { isAsPlanned } from './intact.js';
import { tableObject } from './nftables.js';
import type { Plan } from './plan.js';
import { TICK_MS } from './segments.js';
import { ANONYMOUS_SET } from './statement.js';

/** What a set holds. */
export interface Content extends Pick<NftElements, 'elements' | 'intervals'> {
  readonly set: string;
}

/** Of all named sets, or those of which `wanted` says so. */
export async function readContents(
  nftables: NftablesSocket,
  { family, name: table }: NftTable,
  wanted: (set: NftSet) => boolean = () => true,
): Promise<Content[]> {
  const sets = await nftables.list('set', { family, table });
  return Promise.all(
    sets
      .filter((set) => !set.flags?.includes('anonymous') && wanted(set))
      .map(async ({ name: set }) => {
        const [found] = await nftables.list('elements', { family, table, set });
        return { set, elements: found?.elements ?? [] };
      }),
  );
}

/** Whether the kernel itself puts into it what it sees, and takes it out. */
export const isDynamic = ({ flags }: NftSet): boolean => flags?.includes('eval') ?? false;

/** What makes the table of a plan, with this in its sets in the place of what is planned. */
export function tableWith(plan: Plan, contents: readonly Content[]): NftOperation[] {
  const { family, name: table } = tableObject(plan);
  const planned = contents.filter(({ set }) =>
    plan.nftables.some(({ object }) => object.kind === 'set' && object.name === set),
  );
  return [
    ...plan.nftables.filter(
      ({ object }) => object.kind !== 'elements' || !planned.some(({ set }) => set === object.set),
    ),
    ...planned
      .filter(({ elements, intervals }) => elements.length > 0 || intervals)
      .map(
        ({ elements, ...content }): NftOperation => ({
          verb: 'add',
          object: { kind: 'elements', family, table, elements: elements.map(lasting), ...content },
        }),
      ),
  ];
}

/** With the time that is left to it. */
const lasting = ({ expiresMs, ...element }: NftElement): NftElement =>
  expiresMs === undefined ? element : { ...element, timeoutMs: BigInt(Math.max(TICK_MS, Number(expiresMs))) };

/**
 * What makes a table that a predecessor left that of a plan, all at once. Where the two differ in their rules and in what
 * is in the sets only, the table, its chains and sets stay, and the kernel goes on remembering connections in them;
 * otherwise they are made anew, and what it has remembered is copied.
 */
export async function succession(
  nftables: NftablesSocket,
  plan: Plan,
  predecessor: NftTable,
  contents: readonly Content[],
): Promise<NftOperation[]> {
  const table = tableObject(plan);
  const filter = { family: table.family, table: table.name };
  const [chains, sets] = await Promise.all([nftables.list('chain', filter), nftables.list('set', filter)]);
  const isNamed = (set: NftSet) => !set.flags?.includes('anonymous');
  const found: (NftChain | NftSet)[] = [...chains, ...sets.filter(isNamed)];
  const wanted = plan.nftables.flatMap(({ object }) =>
    object.kind === 'chain' || (object.kind === 'set' && isNamed(object)) ? [object] : [],
  );
  const isSame =
    Buffer.compare(predecessor.userdata ?? Buffer.of(), table.userdata ?? Buffer.of()) === 0 &&
    found.length === wanted.length &&
    wanted.every((object) => isAsPlanned(object, found));
  if (!isSame) {
    const remembered = await readContents(nftables, table, isDynamic);
    return [{ verb: 'delete', object: table }, ...tableWith(plan, [...contents, ...remembered])];
  }
  const refilled = wanted.filter((object) => object.kind === 'set' && !isDynamic(object)) as NftSet[];
  return [
    { verb: 'add', object: table },
    { verb: 'flush', object: table },
    ...refilled.map((object): NftOperation => ({ verb: 'flush', object })),
    ...tableWith(plan, contents).filter(
      ({ object }) =>
        object.kind === 'rule' ||
        (object.kind === 'set' && object.name === ANONYMOUS_SET) ||
        (object.kind === 'elements' &&
          (object.set === ANONYMOUS_SET || refilled.some(({ name }) => name === object.set))),
    ),
  ];
}
