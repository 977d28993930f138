/** The command `linux-tproxy` in the lab. */
import { execFile } from 'node:child_process';
import { compiled } from './compiled.js';
import type { Host, Lab } from './lab.js';

/** The command line that runs it. */
export const command = (...args: string[]): [string, ...string[]] => [
  process.execPath,
  compiled('src/cli/main.ts'),
  ...args,
];

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
