/** Live sets' arithmetic, against a plain table of every number and the time until which it is there. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { merge, portRange, type Range } from '../../src/intercept/ranges.js';
import {
  adding,
  type Change,
  deleting,
  difference,
  type Segment,
  timedElements,
} from '../../src/intercept/segments.js';

const test = suite('segments');
const FOREVER = Number.POSITIVE_INFINITY;
const range = (start: number, end: number): Range => ({ start: BigInt(start), end: BigInt(end) });
const segment = (start: number, end: number, until = FOREVER): Segment => ({ ...range(start, end), until });
const applied = (segments: readonly Segment[], { at, old, next }: Change): Segment[] => [
  ...segments.slice(0, at),
  ...next,
  ...segments.slice(at + old.length),
];

test('overlapping and adjacent ranges become one', () => {
  const change = adding([segment(10, 19), segment(30, 39)], [range(20, 32)], FOREVER, 0);
  assert.equal(applied([segment(10, 19), segment(30, 39)], change), [segment(10, 39)]);
});

test('what is there already is nothing to do, with a shorter time neither', () => {
  for (const until of [FOREVER, 50]) {
    const change = adding([segment(10, 39)], [range(12, 15)], until, 0);
    assert.equal(difference(change, 0), { gone: [], created: [] });
  }
});

test('a time is lengthened, and only where it was shorter', () => {
  const before = [segment(10, 19, 50), segment(20, 29, 200)];
  assert.equal(applied(before, adding(before, [range(15, 24)], 100, 0)), [
    segment(10, 14, 50),
    segment(15, 19, 100),
    segment(20, 29, 200),
  ]);
  assert.equal(applied(before, adding(before, [range(0, 99)], FOREVER, 0)), [segment(0, 99)]);
});

test('a part is cut out of the middle; what is not there is no error', () => {
  const before = [segment(10, 39)];
  assert.equal(applied(before, deleting(before, [range(20, 29), range(50, 60)], 0)), [
    segment(10, 19),
    segment(30, 39),
  ]);
  assert.equal(deleting([], [range(1, 2)], 0).next, []);
});

test('only what changes is sent: neighbours stay as they are', () => {
  const before = [segment(1, 1), segment(10, 10), segment(20, 20)];
  const { gone, created } = difference(adding(before, [range(15, 15)], FOREVER, 0), 0);
  assert.equal([gone, created], [[], [segment(15, 15)]]);
});

test('expired segments are not deleted again, and what is added in their place is created', () => {
  const before = [segment(10, 19, 50)];
  const change = adding(before, [range(10, 19)], FOREVER, 60);
  assert.equal(difference(change, 60), { gone: [], created: [segment(10, 19)] });
  assert.equal(applied(before, change), [segment(10, 19)]);
});

test('elements: the time that is left; no end behind the last number', () => {
  const now = 100;
  const { elements, intervals } = timedElements(
    portRange,
    [segment(80, 80), segment(90, 99, 130.5), segment(200, 200, 100.5), segment(443, 8079), segment(65535, 65535)],
    now,
  );
  assert.equal(
    elements.map(({ key, flags, timeoutMs }) => [key[0], key[1], flags?.[0], timeoutMs]),
    [
      [0, 90, undefined, 31n],
      [0, 100, 'intervalEnd', undefined],
      [0, 200, undefined, 10n], // what is less than a tick some kernels take for ever
      [0, 201, 'intervalEnd', undefined],
      [255, 255, undefined, undefined],
    ],
  );
  const keys = new Uint8Array([0, 80, 0, 81, 443 >> 8, 443 & 255, 8080 >> 8, 8080 & 255]);
  assert.equal(intervals, { keyLength: 2, keys });
});

test('random additions, deletions and waits do what a plain table does, and the kernel is told the difference', () => {
  let seed = 4711;
  const random = (below: number) => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    return seed % below;
  };
  const SIZE = 120;
  for (let round = 0; round < 300; round++) {
    const table = new Array<number>(SIZE).fill(0);
    let segments: Segment[] = [];
    let kernel = new Map<string, Segment>();
    const name = (each: Segment) => `${each.start}-${each.end}-${each.until}`;
    for (let now = 1; now < 25; now++) {
      const ranges = merge(
        Array.from({ length: 1 + random(3) }, () => {
          const start = random(SIZE - 12);
          return range(start, start + random(12));
        }),
      );
      const covered = (index: number) => ranges.some(({ start, end }) => start <= index && index <= end);
      const until = random(2) ? FOREVER : now + 1 + random(10);
      const isAdding = random(3) > 0;
      const change = isAdding ? adding(segments, ranges, until, now) : deleting(segments, ranges, now);
      table.forEach((old, index) => {
        if (covered(index)) table[index] = isAdding ? Math.max(old > now ? old : 0, until) : 0;
      });

      // The kernel forgets what has expired, refuses to delete what it has not, and refuses overlaps.
      kernel = new Map([...kernel].filter(([, each]) => each.until > now));
      const { gone, created } = difference(change, now);
      for (const each of gone) assert.ok(kernel.delete(name(each)), `${name(each)} is there to delete`);
      for (const each of created) kernel.set(name(each), each);
      const inKernel = [...kernel.values()];
      assert.equal(
        merge(inKernel).reduce((sum, { start, end }) => sum + end - start + 1n, 0n),
        inKernel.reduce((sum, { start, end }) => sum + end - start + 1n, 0n),
        'no overlaps',
      );

      segments = applied(segments, change);
      const found = (list: readonly Segment[], index: number) =>
        list.find(({ start, end }) => start <= index && index <= end)?.until ?? 0;
      for (let index = 0; index < SIZE; index++) {
        const expected = (table[index] as number) > now ? table[index] : 0;
        const known = found(segments, index);
        assert.is(known > now ? known : 0, expected, `round ${round}, time ${now}, number ${index}`);
        assert.is(found(inKernel, index), expected);
      }
    }
  }
});

test.run();
