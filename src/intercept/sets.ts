/**
 * The sets of an interception while it is live: `rules.exclude.to.add('10.0.0.0/8', { ttlMs: 60_000 })`. Knows what is in
 * each, works out the fewest elements to delete and create, and leaves the sending to install.ts.
 */
import { checkOptions, InterceptError, invalidValue, NetlinkError, outOfRange } from '../errors.js';
import type { NftElements, NftOperation } from '../netlink/types.js';
import type { Family, LiveSet, PortSet, PortSpec, PrefixSet } from '../types.js';
import type { Content } from './contents.js';
import { setFor } from './named-sets.js';
import type { Plan, PrefixRanges } from './plan.js';
import {
  addressRange,
  formatRange,
  merge,
  parsePorts,
  parsePrefixes,
  portRange,
  type Range,
  type RangeType,
  toPrefixes,
} from './ranges.js';
import {
  adding,
  type Change,
  deleting,
  difference,
  type Segment,
  TICK_MS,
  timedElements,
  timedSegments,
} from './segments.js';

export interface LiveSets {
  /** Never from or to these. */
  readonly exclude: { readonly from: PrefixSet; readonly to: PrefixSet };
  readonly ports: { readonly tcp: PortSet; readonly udp: PortSet };
  /** Only from or to these: where the option of that name was given. */
  readonly from?: PrefixSet;
  readonly to?: PrefixSet;
}

/** A set in the kernel and what we know to be in it. */
interface KernelSet {
  readonly name: string;
  readonly type: RangeType;
  segments: readonly Segment[];
}

/** What a live set is made of: prefixes are two sets in the kernel, one for each family. */
interface Parts<Spec> {
  readonly sets: readonly KernelSet[];
  /** Ranges for each of `sets`. */
  parse(specs: readonly Spec[]): (readonly Range[])[];
  show(set: KernelSet, range: Range): Spec[];
  /** Why there are no sets. */
  readonly missing: string;
}

/**
 * The kernel's answer was not what we know: an element has expired a moment before we thought, or its answer was lost. Then
 * the set is written anew as a whole, in one batch too.
 */
const DISAGREEMENTS = ['ENOENT', 'EEXIST', 'ENOBUFS', 'EINTR'];

/** Sets that are no sets in the kernel, but rules: writes those that follow them. */
export type Rewrite = (sets: readonly { readonly set: string; readonly ranges: readonly Range[] }[]) => Promise<void>;

/** `kept`: what the sets of a predecessor hold. What has a time limit there is in these sets, too, for the rest of it. */
export function liveSets(
  plan: Plan,
  kept: readonly Content[],
  commit: (operations: readonly NftOperation[]) => Promise<void>,
  rewrite?: Rewrite,
): { readonly live: LiveSets; readonly contents: () => Content[] } {
  const intercepts = plan.tcp !== undefined || plan.udp !== undefined;
  const all: KernelSet[] = [];
  const live = <Spec>(parts: Parts<Spec>) => {
    for (const each of parts.sets) keep(each, kept);
    all.push(...parts.sets);
    return liveSet(parts, plan.nftTable, commit, rewrite);
  };
  const ports = (protocol: 'tcp' | 'udp') => {
    const ranges = plan[protocol];
    return live<PortSpec>({
      sets: ranges ? [kernelSet(`${protocol}_ports`, portRange, ranges)] : [],
      parse: (specs) => [parsePorts(protocol, specs)],
      show: (_, range) => [range.start === range.end ? Number(range.start) : formatRange(portRange, range)],
      missing: `${protocol} ports: install with \`${protocol}: []\` to have one`,
    });
  };
  const prefixes = (name: string, set: string, ranges: PrefixRanges) => {
    const families = intercepts ? plan.families : [];
    return live<string>({
      sets: families.map((family) => kernelSet(setFor(set, family), addressRange(family), ranges[family])),
      parse(specs) {
        const parsed = parsePrefixes(name, specs);
        return families.map((family) => parsed[family]);
      },
      show: ({ type }, range) => toPrefixes(type.kind as Family, range),
      missing: `prefixes: it intercepts nothing, so that there is nothing to exclude`,
    });
  };
  const sets: LiveSets = {
    exclude: {
      from: prefixes('exclude.from', 'exclude_from', plan.exclude.from),
      to: prefixes('exclude.to', 'exclude_to', plan.exclude.to),
    },
    ports: { tcp: ports('tcp'), udp: ports('udp') },
    ...(plan.from && { from: prefixes('from', 'from', plan.from) }),
    ...(plan.to && { to: prefixes('to', 'to', plan.to) }),
  };
  return {
    live: sets,
    contents: () => all.map(({ name, type, segments }) => ({ set: name, ...lasting(type, segments) })),
  };
}

type Elements = Pick<NftElements, 'elements' | 'intervals'>;
const kernelSet = (name: string, type: RangeType, ranges: readonly Range[]): KernelSet => ({
  name,
  type,
  segments: ranges.map(({ start, end }) => ({ start, end, until: Number.POSITIVE_INFINITY })),
});

/** What is in them at first. */
export const contentsOf = (plan: Plan, kept: readonly Content[]): Content[] =>
  liveSets(plan, kept, async () => {}).contents();

function keep(set: KernelSet, kept: readonly Content[]): void {
  const now = performance.now();
  const elements = kept.find((content) => content.set === set.name)?.elements ?? [];
  for (const each of timedSegments(set.type, elements, now)) {
    const { at, old, next } = adding(set.segments, [each], each.until, now);
    set.segments = set.segments.toSpliced(at, old.length, ...next);
  }
}

/** The elements of those segments whose time is not over. */
function lasting(type: RangeType, segments: readonly Segment[]): Elements {
  const now = performance.now();
  return timedElements(
    type,
    segments.filter(({ until }) => until > now),
    now,
  );
}

function liveSet<Spec>(
  parts: Parts<Spec>,
  table: string,
  commit: (operations: readonly NftOperation[]) => Promise<void>,
  rewrite: Rewrite | undefined,
): LiveSet<Spec> {
  let last: Promise<void> = Promise.resolve();

  /** After all changes before it: what they did must be known. */
  function inTurn(
    specs: Spec | readonly Spec[],
    plan: (set: KernelSet, ranges: readonly Range[], now: number) => Change,
  ) {
    if (parts.sets.length === 0)
      throw new InterceptError('ERR_TPROXY_NO_SET', `This interception has no set of ${parts.missing}`);
    const ranges = parts.parse(Array.isArray(specs) ? specs : [specs as Spec]);
    const turn = last.then(() => {
      const now = performance.now();
      return apply(
        parts.sets.map((set, index) => ({ set, change: plan(set, ranges[index] ?? [], now) })),
        now,
      );
    });
    last = turn.catch(() => {});
    return turn;
  }

  async function apply(changes: readonly { set: KernelSet; change: Change }[], now: number): Promise<void> {
    const after = changes.map(({ set, change: { at, old, next } }) => [
      ...set.segments.slice(0, at),
      ...next,
      ...set.segments.slice(at + old.length),
    ]);
    if (rewrite) {
      await rewrite(changes.map(({ set }, index) => ({ set: set.name, ranges: merge(after[index] ?? []) })));
      changes.forEach(({ set }, index) => {
        set.segments = after[index] ?? [];
      });
      return;
    }
    const differences = changes.map(({ set, change }) => ({ set, change, ...difference(change, now) }));
    const operations = [
      ...differences.map(({ set, gone }) =>
        elements(
          'delete',
          set,
          timedElements(
            set.type,
            gone.map((each) => ({ ...each, until: Number.POSITIVE_INFINITY })),
            now,
          ),
        ),
      ),
      ...differences.map(({ set, created }) => elements('create', set, timedElements(set.type, created, now))),
    ].flat();
    if (operations.length > 0)
      await commit(operations).catch((error) => {
        if (!(error instanceof NetlinkError && DISAGREEMENTS.includes(error.code))) throw error;
        return commit(changes.flatMap(({ set }, index) => anew(set, after[index] ?? [])));
      });
    // The kernel counts from the commit on, of which nobody knows when in this time it was: what we think to have expired must
    // have expired there.
    const late = performance.now() - now + TICK_MS;
    differences.forEach(({ set, created }, index) => {
      const fresh = new Set(created.filter(({ until }) => until !== Number.POSITIVE_INFINITY));
      const segments = after[index] ?? [];
      set.segments =
        fresh.size === 0
          ? segments
          : segments.map((each) => (fresh.has(each) ? { ...each, until: each.until + late } : each));
    });
  }

  function elements(verb: 'delete' | 'create', { name }: KernelSet, list: Elements): NftOperation[] {
    if (list.elements.length === 0 && !list.intervals) return [];
    return [{ verb, object: { kind: 'elements', family: 'inet', table, set: name, ...list } }];
  }

  function anew(set: KernelSet, segments: readonly Segment[]): NftOperation[] {
    const { name, type } = set;
    return [
      { verb: 'flush', object: { kind: 'set', family: 'inet', table, name, keyType: 0, keyLength: type.bytes } },
      ...elements('create', set, lasting(type, segments)),
    ];
  }

  return {
    async add(specs, options = {}) {
      checkOptions('add options', options, ['ttlMs']);
      const { ttlMs = Number.POSITIVE_INFINITY } = options;
      if (typeof ttlMs !== 'number' || !(ttlMs >= 1))
        throw outOfRange('ttlMs', 'a time of 1 millisecond or more', ttlMs);
      if (rewrite && ttlMs !== Number.POSITIVE_INFINITY)
        throw invalidValue('ttlMs', "left out with backend 'iptables', whose rules do not expire", ttlMs);
      await inTurn(specs, (set, ranges, now) => adding(set.segments, ranges, now + ttlMs, now));
    },
    async delete(specs) {
      await inTurn(specs, (set, ranges, now) => deleting(set.segments, ranges, now));
    },
    async replace(specs) {
      const lasts = (range: Range): Segment => ({ ...range, until: Number.POSITIVE_INFINITY });
      await inTurn(specs, (set, ranges) => ({ at: 0, old: set.segments, next: ranges.map(lasts) }));
    },
    values() {
      const now = performance.now();
      return parts.sets.flatMap((set) =>
        merge(set.segments.filter(({ until }) => until > now)).flatMap((range) => parts.show(set, range)),
      );
    },
  };
}
