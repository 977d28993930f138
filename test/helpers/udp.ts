/** Datagrams between the lab's hosts: a server, a transparent proxy that answers itself, and a client (peers/udp.py). */
import { fileURLToPath } from 'node:url';
import type { Host, Lab, Program } from './lab.js';

const script = fileURLToPath(new URL('peers/udp.py', import.meta.url));

async function program(lab: Lab, host: Host, ...args: (string | number)[]): Promise<Program> {
  const started = lab.spawn(host, 'python3', script, ...args.map(String));
  await started.until(/^ready$/m);
  return started;
}

/** An ordinary server: answers with its name and with whom it sees. */
export const serveUdp = (lab: Lab, host: Host, name: string, port: number): Promise<Program> =>
  program(lab, host, 'serve', name, port);

/**
 * Answers from the original destination, and says which that was. Its answers carry `mark`: by default that of an
 * interception which has chosen the first free one.
 */
export const proxyUdp = (lab: Lab, host: Host, port: number, mark = 0x1): Promise<Program> =>
  program(lab, host, 'proxy', 'proxy', port, mark);

export interface AskUdpOptions {
  /** Bound there, also when it is foreign. */
  readonly from?: string;
  readonly port?: number;
  readonly mark?: number;
  readonly timeout?: number;
  /** Datagrams, one after the other, over one socket; the last answer counts. */
  readonly count?: number;
}

/** The answer's words (who answered, what it saw), or the error's code. */
export async function askUdp(
  lab: Lab,
  host: Host,
  address: string,
  port: number,
  options: AskUdpOptions = {},
): Promise<string[]> {
  const settings = Object.entries(options).map(([key, value]) => `${key}=${value}`);
  return (await lab.run(host, 'python3', script, 'ask', address, String(port), ...settings)).trim().split(' ');
}
