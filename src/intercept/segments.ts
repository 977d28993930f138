/**
 * What a live set holds: ranges in ascending order that never overlap, each with the time until which it is there. Adding
 * and deleting cut and join them; what changes by that are the kernel's elements to delete and to create. Pure.
 */
import type { NftElement, NftElements } from '../netlink/types.js';
import { intervalKeys, isOpen, type Range, type RangeType, rangeElements, rangesOfElements } from './ranges.js';

export interface Segment extends Range {
  /** In the caller's milliseconds; Infinity: until deleted. */
  readonly until: number;
}

/**
 * The kernel counts in ticks of up to 10 ms. By its source (nf_msecs_to_jiffies64) what is there for less than one is there for
 * ever before Linux 6.12, and the stable kernels of its time.
 */
export const TICK_MS = 10;

/** Part of a list of segments that a change replaces: `splice(at, old.length, ...next)`. */
export interface Change {
  readonly at: number;
  readonly old: readonly Segment[];
  readonly next: readonly Segment[];
}

/** Adds ranges (ascending, apart from each other) until a time. What is there for longer already stays so. */
export function adding(segments: readonly Segment[], ranges: readonly Range[], until: number, now: number): Change {
  return change(segments, ranges, now, (old, added) => {
    const fresh = added.map(({ start, end }) => ({ start, end, until }));
    if (old.length === 0) return fresh;
    return [
      ...subtract(old, added),
      ...subtract(fresh, old),
      ...intersect(old, added).map((each) => ({ ...each, until: Math.max(each.until, until) })),
    ];
  });
}

/** The ranges as above. */
export function deleting(segments: readonly Segment[], ranges: readonly Range[], now: number): Change {
  return change(segments, ranges, now, subtract);
}

function change(
  segments: readonly Segment[],
  ranges: readonly Range[],
  now: number,
  combine: (old: readonly Segment[], ranges: readonly Range[]) => Segment[],
): Change {
  const [first, last] = [ranges[0], ranges.at(-1)];
  if (!first || !last) return { at: 0, old: [], next: [] };
  // Only what the ranges touch, with the neighbours that they may be joined to.
  const at = firstIndex(segments, ({ end }) => end + 1n >= first.start);
  const behind = firstIndex(segments, ({ start }) => start > last.end + 1n);
  const old = segments.slice(at, Math.max(at, behind));
  if (old.length === 0) return { at, old, next: combine(old, ranges) };
  const next = combine(
    old.filter((each) => each.until > now),
    ranges,
  );
  return { at, old, next: join(next) };
}

/** Sorted, and adjacent ones that are there until the same time made one. */
function join(segments: Segment[]): Segment[] {
  const joined: Segment[] = [];
  for (const segment of segments.sort((a, b) => (a.start < b.start ? -1 : 1))) {
    const last = joined.at(-1);
    if (last && last.until === segment.until && last.end + 1n === segment.start)
      joined[joined.length - 1] = { ...last, end: segment.end };
    else joined.push(segment);
  }
  return joined;
}

/** `from` without `what`; both sorted and without overlaps, as are the results. */
function subtract<T extends Range>(from: readonly T[], what: readonly Range[]): T[] {
  const rest: T[] = [];
  let index = 0;
  for (const each of from) {
    let { start } = each;
    while (index < what.length && (what[index] as Range).end < start) index++;
    for (let next = index; next < what.length && (what[next] as Range).start <= each.end; next++) {
      const hole = what[next] as Range;
      if (hole.start > start) rest.push({ ...each, start, end: hole.start - 1n });
      start = hole.end + 1n;
    }
    if (start <= each.end) rest.push({ ...each, start });
  }
  return rest;
}

function intersect<T extends Range>(one: readonly T[], other: readonly Range[]): T[] {
  return subtract(one, subtract(one, other));
}

/** The first index at which a condition holds that holds for all behind it. */
function firstIndex<T>(list: readonly T[], holds: (each: T) => boolean): number {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(list[middle] as T)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The segments that the kernel must forget and learn: those that are the same before and after, neither. */
export function difference(
  { old, next }: Change,
  now: number,
): { readonly gone: readonly Segment[]; readonly created: readonly Segment[] } {
  return {
    // Expired ones are gone by themselves.
    gone: without(
      old.filter(({ until }) => until > now),
      next,
    ),
    created: without(next, old),
  };
}

/** Both in ascending order. */
function without(some: readonly Segment[], others: readonly Segment[]): readonly Segment[] {
  if (others.length === 0) return some;
  let index = 0;
  return some.filter(({ start, end, until }) => {
    while ((others[index]?.start ?? start) < start) index++;
    const other = others[index];
    return other?.start !== start || other.end !== end || other.until !== until;
  });
}

/** The elements of an interval set that are these segments, each with the time that it still has. */
export function timedElements(
  type: RangeType,
  segments: readonly Segment[],
  now: number,
): Pick<NftElements, 'elements' | 'intervals'> {
  const isPlain = ({ until, end }: Segment) => until === Number.POSITIVE_INFINITY && !isOpen(type, end);
  const plain = segments.filter(isPlain);
  const elements = segments
    .filter((each) => !isPlain(each))
    .flatMap((segment): NftElement[] => {
      const [start, ...end] = rangeElements(type, segment);
      if (segment.until === Number.POSITIVE_INFINITY) return [start, ...end];
      return [{ ...start, timeoutMs: BigInt(Math.max(TICK_MS, Math.ceil(segment.until - now))) }, ...end];
    });
  return {
    elements,
    ...(plain.length > 0 && { intervals: { keyLength: type.bytes, keys: intervalKeys(type, plain) } }),
  };
}

/** The other way round, of an interval set as the kernel lists it: those that have a time, and how much of it is left. */
export function timedSegments(type: RangeType, elements: readonly NftElement[], now: number): Segment[] {
  return elements.flatMap(({ expiresMs, flags }, index) => {
    if (expiresMs === undefined || flags?.includes('intervalEnd')) return [];
    const [range] = rangesOfElements(type, elements.slice(index, index + 2));
    return range ? [{ ...range, until: now + Number(expiresMs) }] : [];
  });
}
