/**
 * The test runner: `npm test`, or `node --import tsx test/run.ts [--verbose] [--timeout SECONDS] [--linger SECONDS] [lint | SUITE | FILE]...`
 * A suite is a folder of test/. Every file is a process of its own, two run at a time on each core, since most of them wait for
 * the kernel and its timers; those of the suites kernel and interop are in private namespaces (helpers/namespaces.ts). Lint
 * runs before all others, then files whose first line begins with `// takes long`, so that none of them is left in the end.
 * A file whose first line begins with `// runs alone` runs when all others are done, with four times the time.
 * A file fails when a test of it fails, when it exits with an error, takes too long, does not end after its last test, or tells
 * no totals. In CI a skipped test fails.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { compile } from './helpers/compiled.js';
import { namespaced } from './helpers/namespaces.js';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const suites = ['unit', 'golden', 'kernel', 'interop'];
const privateSuites = ['kernel', 'interop'];
/** The last line that uvu prints. */
const lastTotal = /^ {2}Duration: /m;

interface Job {
  readonly name: string;
  readonly command: readonly [string, ...string[]];
  /** Before all others, beside another one, or when all others are done. */
  readonly when: 'first' | 'beside' | 'alone';
  readonly isLong: boolean;
  readonly timeoutSeconds: number;
}

interface Result {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  readonly problem?: string;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    verbose: { type: 'boolean', short: 'v', default: false },
    timeout: { type: 'string', default: '300' },
    linger: { type: 'string', default: '10' },
  },
});
process.chdir(root);
const jobs = (
  positionals.length ? positionals : ['lint', ...suites.filter((suite) => existsSync(join('test', suite)))]
).flatMap(jobsOf);
if (jobs.length === 0) throw new Error(`No tests in ${positionals}`);
if (jobs.some(({ when }) => when !== 'first')) compile();
// Colours would be in the way when the output is read here.
const { FORCE_COLOR: _, ...env }: NodeJS.ProcessEnv = { ...process.env, NO_COLOR: '1' };
const ci = Boolean(process.env['CI']);
const sum = { passed: 0, failed: 0, skipped: 0 };

for (const [when, workers] of [
  ['first', 1],
  ['beside', 2 * availableParallelism()],
  ['alone', 1],
] as const) {
  await inParallel(
    jobs.filter((job) => job.when === when).sort((one, other) => Number(other.isLong) - Number(one.isLong)),
    workers,
  );
}
console.log(`\n${sum.passed} passed, ${sum.failed} failed${sum.skipped ? `, ${sum.skipped} skipped` : ''}`);
process.exitCode = sum.failed ? 1 : 0;

function jobsOf(argument: string): Job[] {
  if (argument === 'lint')
    return [{ name: 'lint', command: ['sh', 'scripts/lint.sh'], when: 'first', isLong: true, timeoutSeconds: 900 }];
  const path = suites.includes(argument) ? join('test', argument) : relative(root, argument);
  const files = statSync(path).isDirectory()
    ? readdirSync(path, { recursive: true, encoding: 'utf8' }).map((name) => join(path, name))
    : [path];
  return files
    .filter((file) => /\.test\.m?ts$/.test(file))
    .sort()
    .map((file) => {
      const command = [process.execPath, '--import', 'tsx', file] as const;
      const suite = file.split('/')[1] ?? '';
      const [first = ''] = readFileSync(file, 'utf8').split('\n', 1);
      const alone = first.startsWith('// runs alone');
      return {
        name: relative('test', file),
        command: privateSuites.includes(suite) ? namespaced(command) : [...command],
        when: alone ? 'alone' : 'beside',
        isLong: first.startsWith('// takes long'),
        // The heavy ones: a whole build, tens of thousands of connections.
        timeoutSeconds: Number(values.timeout) * (alone ? 4 : 1),
      };
    });
}

async function inParallel(queue: Job[], workers: number): Promise<void> {
  const work = async () => {
    for (let job = queue.shift(); job; job = queue.shift()) await run(job);
  };
  await Promise.all(Array.from({ length: workers }, work));
}

async function run(job: Job): Promise<void> {
  const started = performance.now();
  const [file, ...args] = job.command;
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  }
  let late: string | undefined;
  const endIn = (seconds: number, reason: string) =>
    setTimeout(() => {
      late = reason;
      child.kill('SIGKILL');
      // Its children may hold the pipes.
      child.stdout.destroy();
      child.stderr.destroy();
    }, seconds * 1000);
  const timers = [endIn(job.timeoutSeconds, `took longer than ${job.timeoutSeconds} s`)];
  child.stdout.on('data', () => {
    if (timers.length === 1 && lastTotal.test(output))
      timers.push(endIn(Number(values.linger), 'has not ended after its last test: something is left open'));
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  for (const timer of timers) clearTimeout(timer);

  const reasons = [...output.matchAll(/^skipped: .*$/gm)].map(([line]) => line);
  const end = late ?? (code === 0 ? undefined : `ended with ${signal ?? code}`);
  const result = judge(job, end, output, reasons.length);
  sum.passed += result.passed;
  sum.failed += result.failed;
  sum.skipped += result.skipped;

  const counts = `${result.passed} passed${result.failed ? `, ${result.failed} FAILED` : ''}${result.skipped ? `, ${result.skipped} skipped` : ''}`;
  const seconds = `${((performance.now() - started) / 1000).toFixed(1)} s`;
  console.log([job.name.padEnd(34), counts, seconds, result.problem].filter(Boolean).join('  '));
  for (const reason of reasons) console.log(`    ${reason}`);
  if (values.verbose || result.failed) console.log(output.trimEnd().replace(/^/gm, '    '));
}

function judge(job: Job, end: string | undefined, output: string, reasons: number): Result {
  // Lint has no totals: it counts as one test, by its exit code.
  if (job.when === 'first')
    return { passed: end ? 0 : 1, failed: end ? 1 : 0, skipped: 0, ...(end && { problem: end }) };
  // The totals of uvu. A test may print the like, uvu comes last.
  const count = (word: string) => Number([...output.matchAll(new RegExp(`^  ${word}: +(\\d+)`, 'gm'))].at(-1)?.[1]);
  const [total, passed, skipped] = [count('Total'), count('Passed'), count('Skipped')];
  if (!(total + skipped > 0))
    return { passed: 0, failed: 1, skipped: 0, problem: end ?? 'no totals, or no test in it' };
  const unexplained = Math.max(0, skipped - reasons);
  const failed = total - passed + (ci ? skipped : unexplained);
  // uvu swallows what a before hook throws, and then runs nothing.
  const problem =
    end ?? (failed > 0 && passed < total ? 'a before hook threw' : unexplained ? 'skips without a reason' : undefined);
  return {
    passed,
    failed: end && !failed ? 1 : failed,
    skipped: skipped - (ci ? skipped : unexplained),
    ...(problem && { problem }),
  };
}
