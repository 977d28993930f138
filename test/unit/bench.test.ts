/** What the bench makes of its numbers: ratios inside a round, figures, charts. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { barChart } from '../../bench/chart.js';
import { figures, type Measured, median, type Results, ratio } from '../../bench/figures.js';

const test = suite('bench');
const measured = (rate: number, machine = 1): Measured => ({ rate, process: 1, machine });
const results: Results = new Map([
  [
    'bulk1',
    new Map([
      ['haproxy', [measured(10), measured(20), measured(5)]],
      ['ours', [measured(12, 0.5), measured(30, 2), measured(5, 0.9)]],
    ]),
  ],
]);

test('a ratio is the median of the ratios of each round', () => {
  assert.is(median([3, 1, 2]), 2);
  assert.is(median([4, 1, 2, 3]), 2.5);
  assert.is(ratio(results, 'bulk1', 'ours', 'haproxy'), 1.2);
  assert.is(ratio(results, 'bulk1', 'ours', 'haproxy', 'machine'), 0.9);
  assert.is(ratio(results, 'bulk1', 'ours', 'forwarding'), undefined, 'not measured');
  assert.is(ratio(results, 'rr1', 'ours', 'haproxy'), undefined);
});

test('figures: of what was measured; an aim is beyond what is to be reached', () => {
  const told = figures.filter((figure) => figure.value(results, { systemCalls: { ours: 12 }, idle: {} }) !== undefined);
  assert.equal(
    told.map(({ work, atMost }) => [work, atMost ?? false]),
    [
      ['bulk, 1 connection, to HAProxy', false],
      ['CPU of the whole machine per GB, 1 connection, to HAProxy', true],
      ['system calls per short connection', true],
    ],
  );
  for (const { work, reach, aim, atMost } of figures)
    if (aim !== undefined && reach !== 0) assert.ok(atMost ? aim < reach : aim > reach, work);
  assert.is(new Set(figures.map(({ work }) => work)).size, figures.length, 'notes are found by the work');
});

test('a chart is well-formed, and its bars are to scale', () => {
  const bar = (name: string, value: number) => ({ name, value, low: value, high: value, strong: false });
  const svg = barChart('a < b & "c"', [{ title: 'group', bars: [bar('one', 50), bar('two', 100)] }], String);
  assert.match(svg, /^<svg [\s\S]*<\/svg>\n$/);
  assert.match(svg, /aria-label="a &#60; b &#38; &#34;c&#34;"/);
  assert.equal(
    [...svg.matchAll(/<rect [^>]*width="(\d+)"/g)].map(([, width]) => Number(width)),
    [210, 420],
  );
});

test.run();
