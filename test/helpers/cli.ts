/** The command `linux-tproxy` in the lab, compiled as it is for the package: tsx would take longer to start than it to work. */
import { execFile, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { Host, Lab } from './lab.js';

const root = resolve(import.meta.dirname, '../..');
let main: string | undefined;

/** The command line that runs it. */
export function command(...args: string[]): [string, ...string[]] {
  main ??= compile();
  return [process.execPath, main, ...args];
}

/** To a directory of its own, that looks like the package's: `dist` of the clone belongs to who works in it. */
function compile(): string {
  const directory = mkdtempSync(join(tmpdir(), 'linux-tproxy-cli-'));
  process.on('exit', () => rmSync(directory, { recursive: true }));
  for (const name of ['build', 'node_modules', 'package.json']) symlinkSync(join(root, name), join(directory, name));
  const tsc = [join(root, 'node_modules/.bin/tsc'), '-p', join(root, 'tsconfig.build.json')];
  execFileSync(process.execPath, [...tsc, '--outDir', join(directory, 'dist')], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  return join(directory, 'dist/cli/main.js');
}

export interface Outcome {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs it on a host of the lab and tells how it ended, whichever way. */
export function cli(lab: Lab, host: Host, ...args: string[]): Promise<Outcome> {
  return outcome('nsenter', `--net=${lab.netns(host)}`, '--', ...command(...args));
}

export function outcome(file: string, ...args: string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(file, args, (error, stdout, stderr) => {
      resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

/** What it printed, or an error with what it complained of. */
export async function succeed(ending: Promise<Outcome>): Promise<string> {
  const { status, stdout, stderr } = await ending;
  if (status !== 0 || stderr !== '') throw new Error(`exit status ${status}: ${stderr}${stdout}`);
  return stdout;
}
