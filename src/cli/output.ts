/** What verbs print: text or one JSON document, and the words for what is told by more than one of them. */
import type { Leftovers } from '../intercept/installed.js';
import { fwmarkText } from '../intercept/nftables.js';
import { changedByText } from '../intercept/owner.js';
import type { Plan } from '../intercept/plan.js';
import type { Family, Fwmark, RepairReport } from '../types.js';
import type { Values } from './verb.js';

/** `data` with --json, else the text. */
export function print(values: Values, data: unknown, text: string): void {
  process.stdout.write(values['json'] === true ? `${JSON.stringify(data, plain, 2)}\n` : text);
}

/** Counters are bigints, which JSON has not; bytes are for machines. */
function plain(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? Number(value) : value;
}

/** What was installed, for --json. */
export function installedData(plan: Plan) {
  const { name, backend, mode, nftTable, families, port, address, onDown, fwmark, table, priority } = plan;
  const to = { families, port, ...(address !== undefined && { address }) };
  return { name, backend, mode, nftTable, ...to, onDown, fwmark, table, priority };
}

export interface Routing {
  readonly families: readonly Family[];
  readonly port?: number;
  readonly address?: string;
  readonly backend: 'nftables' | 'iptables';
  readonly nftTable: string;
  readonly mode: 'tproxy' | 'redirect';
  readonly fwmark: Fwmark;
  readonly table: number;
  readonly priority: number;
}

/** Rows of `what  how`, the first column aligned. */
export function rows(pairs: readonly (readonly [string, string])[]): string {
  return pairs.map(([what, how]) => `  ${what.padEnd(15)} ${how}\n`).join('');
}

export function routingRows({ mode, families, port, address, backend, nftTable, fwmark, table, priority }: Routing) {
  const host = address?.includes(':') ? `[${address}]` : (address ?? '');
  return [
    ['delivers to', port === undefined ? 'transparent sockets' : `${host}:${port} (${families.join(', ')})`],
    backend === 'iptables'
      ? (['iptables', `table mangle, chain ${nftTable}`] as const)
      : (['nf_tables', `table inet ${nftTable}`] as const),
    ...(mode === 'redirect'
      ? ([['mode', mode]] as const)
      : ([
          ['fwmark', fwmarkText(fwmark)],
          ['routing table', String(table)],
          ['priorities', `${priority} to ${priority + 3}`],
        ] as const)),
  ] as const;
}

/** What is left over; nothing where nothing is. */
export function leftoverWords({ chains, rules, routes }: Leftovers): string {
  if (chains.length + rules.length + routes.length === 0) return '';
  const inMangle = chains.map((name) => `chains linux-tproxy-${name} in table mangle, `).join('');
  return `${inMangle}${rules.length} policy rules, ${routes.length} routes`;
}

export const repairedText = ({ repaired, by }: Pick<RepairReport, 'repaired' | 'by'>): string =>
  `put back what ${changedByText(by) || 'somebody else'} had changed: ${repaired.join(', ')}`;
