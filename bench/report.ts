/** bench/RESULTS.md: what was reached, why not what was not (notes.md), and all that was measured. Pure. */
import { type Counted, type Figure, figures, type Measured, median, type Results, ratio } from './figures.js';
import { type Load, type LoadName, loads } from './loads.js';
import { type PeerName, peers } from './peers.js';

const row = (cells: readonly (string | number)[]) => `| ${cells.join(' | ')} |`;
const table = (head: readonly string[], rows: readonly (readonly (string | number)[])[]) =>
  [row(head), row(head.map(() => '---')), ...rows.map(row)].join('\n');
export const number = (value: number) => (value >= 1000 ? String(Math.round(value)) : value.toPrecision(3));

export function reached({ reach, aim, atMost }: Figure, value: number): 'aim' | 'yes' | 'no' {
  const meets = (limit: number | undefined) => limit !== undefined && (atMost ? value <= limit : value >= limit);
  return meets(aim) ? 'aim' : meets(reach) ? 'yes' : 'no';
}

/** `notes`: lines `- work: what bounds it`, of which those are shown whose figure is not reached. */
export function figureTable(results: Results, counted: Counted, notes: string): string {
  const rows = figures.flatMap((figure) => {
    const value = figure.value(results, counted);
    if (value === undefined) return [];
    const { work, reach, aim, atMost, digits = 2 } = figure;
    const sign = atMost ? '≤ ' : '≥ ';
    return [
      [
        work,
        value.toFixed(digits),
        `${sign}${reach}`,
        aim === undefined ? '' : `${sign}${aim}`,
        reached(figure, value),
      ],
    ];
  });
  const missed = rows.filter((each) => each.at(-1) === 'no').map(([work]) => work);
  const told = notes.split('\n').filter((line) => missed.some((work) => line.startsWith(`- ${work}: `)));
  return [
    table(['work', 'figure', 'reach', 'aim', 'reached'], rows),
    ...(told.length > 0 ? ['', 'What bounds those that are not reached:', '', ...told] : []),
  ].join('\n');
}

export function loadTable(load: LoadName, results: Results): string {
  const { title, unit, per }: Load = loads[load];
  const rows = results.get(load) as ReadonlyMap<PeerName, readonly Measured[]>;
  const references = (['forwarding', 'haproxy', 'haproxy1M', 'ours'] as const).filter((peer) => rows.has(peer));
  const all = (measured: readonly Measured[], key: keyof Measured) => measured.map((each) => each[key] as number);
  const spread = (values: readonly number[]) =>
    `${number(median(values))} (${number(Math.min(...values))}-${number(Math.max(...values))})`;
  const has = (key: keyof Measured) => [...rows.values()].every((each) => each.every((one) => one[key] !== undefined));
  const lines = [...rows].map(([peer, measured]) => [
    peers[peer].name,
    spread(all(measured, 'rate')),
    ...references.map((reference) => ratio(results, load, peer, reference)?.toFixed(2) ?? ''),
    peer === 'forwarding' ? '' : number(median(all(measured, 'process'))),
    number(median(all(measured, 'machine'))),
    ...(has('p99') ? [Math.round(median(all(measured, 'p99')))] : []),
    ...(has('beside') ? [spread(all(measured, 'beside'))] : []),
  ]);
  const head = [
    ...['', unit, ...references.map((reference) => `/ ${peers[reference].name}`)],
    ...[`process, ${per}`, `machine, ${per}`],
    ...(has('p99') ? ['p99, µs'] : []),
    ...(has('beside') ? ['bulk, Gb/s'] : []),
  ];
  return `### ${title}\n\n${table(head, lines)}\n`;
}

export function countedTable({ systemCalls, idle }: Counted): string {
  const names = [...new Set([...Object.keys(systemCalls), ...Object.keys(idle)])] as PeerName[];
  if (names.length === 0) return '';
  return `### Counted\n\n${table(
    ['', 'system calls per short connection', 'resident bytes per idle connection', 'pipes then'],
    names.map((peer) => [
      peers[peer].name,
      systemCalls[peer]?.toFixed(1) ?? '',
      idle[peer] ? Math.round(idle[peer].bytes) : '',
      idle[peer]?.pipes ?? '',
    ]),
  )}\n`;
}
