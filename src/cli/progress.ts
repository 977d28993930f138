/** What `linux-tproxy relay` tells while it runs: a live line on a terminal, lines of JSON, or only beginning and end. */
import type { TransparentServer } from '../server.js';
import type { RelayStats, RepairReport } from '../types.js';
import { repairedText } from './output.js';

export type Tell = (event: string, data: object) => void;

export class Progress {
  readonly #json: boolean;
  readonly #seconds: number;
  #server: TransparentServer | undefined;
  #before: { readonly stats: RelayStats; readonly at: number } | undefined;
  #timer: NodeJS.Timeout | undefined;
  #live = false;

  constructor(json: boolean, seconds: number) {
    this.#json = json;
    this.#seconds = seconds;
  }

  start(server: TransparentServer, started: { readonly port: number; readonly engine: string }): void {
    this.#server = server;
    this.#before = { stats: server.stats(), at: performance.now() };
    this.tell('listening', started);
    // On anything else nobody would see that a line is written over again and again.
    if (this.#json || process.stdout.isTTY) this.#timer = setInterval(() => this.#show(), this.#seconds * 1000).unref();
  }

  readonly tell: Tell = (event, data) => {
    if (this.#json) process.stdout.write(`${JSON.stringify({ event, ...data }, plain)}\n`);
    else this.#say(sentence(event, data));
  };

  complain(error: Error): void {
    this.#endLine();
    console.error(`linux-tproxy relay: ${error.message.replaceAll('\n', ' ')}`);
  }

  end(): void {
    if (!this.#timer && !this.#server) return;
    clearInterval(this.#timer);
    if (this.#server) this.tell('end', this.#server.stats());
    this.#server = undefined;
  }

  #show(): void {
    if (!this.#server || !this.#before) return;
    const now = { stats: this.#server.stats(), at: performance.now() };
    const seconds = (now.at - this.#before.at) / 1000;
    const rate = (of: (stats: RelayStats) => number) =>
      (of(now.stats) - of((this.#before as { stats: RelayStats }).stats)) / seconds;
    const rates = {
      connectionsPerSecond: rate(({ connections }) => connections.total),
      bytesFromClientPerSecond: rate(({ bytesFromClient }) => Number(bytesFromClient)),
      bytesFromServerPerSecond: rate(({ bytesFromServer }) => Number(bytesFromServer)),
    };
    this.#before = now;
    if (this.#json) this.tell('stats', { time: new Date().toISOString(), ...now.stats, ...rates });
    else {
      this.#live = true;
      process.stdout.write(`\r${liveLine(now.stats, rates)}\x1b[K`);
    }
  }

  #say(line: string): void {
    this.#endLine();
    process.stdout.write(`${line}\n`);
  }

  #endLine(): void {
    if (this.#live) process.stdout.write('\r\x1b[K');
    this.#live = false;
  }
}

export interface Rates {
  readonly connectionsPerSecond: number;
  readonly bytesFromClientPerSecond: number;
  readonly bytesFromServerPerSecond: number;
}

export function liveLine(stats: RelayStats, rates: Rates): string {
  const { connections, bytesFromClient, bytesFromServer, connectErrors, acceptErrors } = stats;
  const errors = connectErrors + acceptErrors;
  return [
    `${connections.open} open`,
    `${scaled(rates.connectionsPerSecond)}/s`,
    `up ${scaled(rates.bytesFromClientPerSecond * 8)}b/s`,
    `down ${scaled(rates.bytesFromServerPerSecond * 8)}b/s`,
    `${connections.total} connections, ${scaled(Number(bytesFromClient + bytesFromServer))}B so far`,
    ...(errors > 0 ? [`${errors} errors`] : []),
  ].join(' | ');
}

/** Three digits and a decimal prefix: `1.23 G`. */
export function scaled(value: number): string {
  const prefixes = ['', 'k', 'M', 'G', 'T', 'P'];
  let index = 0;
  for (; value >= 999.5 && index < prefixes.length - 1; index++) value /= 1000;
  const digits = index === 0 && Number.isInteger(value) ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${prefixes[index]}`;
}

function sentence(event: string, data: object): string {
  const { port, engine, open, connections, bytesFromClient, bytesFromServer, ...sets } = data as Partial<
    RelayStats & { port: number; open: number }
  >;
  switch (event) {
    case 'listening':
      return `Relaying on port ${port}, engine ${engine}. SIGTERM drains, SIGHUP reads files again.`;
    case 'repaired':
      return `${repairedText(data as RepairReport).replace('put', 'Put')}.`;
    case 'reloaded':
      return `Read again: ${
        Object.entries(sets)
          .map(([set, count]) => `${set} has ${count}`)
          .join(', ') || 'nothing, no set comes from a file'
      }.`;
    case 'draining':
      return `Draining: ${open} connections are open. A second signal ends them.`;
    case 'cut off':
      return `Closed what was left: ${open} connections.`;
    default:
      return `${connections?.total} connections, ${bytesFromClient} bytes from clients, ${bytesFromServer} from servers.`;
  }
}

/** Counters are bigints, which JSON has not. */
function plain(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? Number(value) : value;
}
