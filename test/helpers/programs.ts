/** Programs beside a test: relays in processes of their own, peers in Python. What they print is lines of JSON. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { compiled } from './compiled.js';
import { opened, until } from './relays.js';

export type Line = {
  port?: number;
  engine?: string;
  kind?: string;
  reason?: string;
  bytesFromServer?: string;
  left?: number;
  failure?: { code: string };
  counters?: string[];
};

/** Starts a command, and gives the lines that it prints. */
export function start(command: string[]): {
  child: ChildProcess;
  next(wanted: (line: Line) => boolean): Promise<Line>;
} {
  const [file, ...args] = command as [string, ...string[]];
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  opened.add(() => child.kill());
  const lines: Line[] = [];
  createInterface(child.stdout).on('line', (line) => lines.push(JSON.parse(line)));
  return {
    child,
    async next(wanted) {
      await until(() => lines.some(wanted), 'the child says so');
      return lines.find(wanted) as Line;
    },
  };
}

export const python = (script: string, ...args: unknown[]) => ['python3', '-c', script, ...args.map(String)];

/** See relay-child.ts. */
export const relayChild = (...args: unknown[]) => [
  process.execPath,
  compiled('test/helpers/relay-child.ts'),
  ...args.map(String),
];

/** The same where system calls are refused; see refuse.py. */
export const refused = (rules: string[], command: string[]) => [
  'python3',
  new URL('refuse.py', import.meta.url).pathname,
  ...rules,
  '--',
  ...command,
];

/** A relay to a port in a process of its own, once it listens. */
export async function startRelay(command: string[]) {
  const { child, next } = start(command);
  const { port, engine } = await next((line) => line.port !== undefined);
  return { child, next, port: port as number, engine };
}
