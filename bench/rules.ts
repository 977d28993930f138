/**
 * How long does it take to change what is installed: by this package, and by spawning `ip` and `nft`, from JavaScript or from a shell
 * script, with the same commands that `plan` prints. Runs what is published (`dist`) in namespaces of its own and writes the table into
 * bench/RULES.md: `npm run bench:rules`.
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import type { InstallOptions } from '../src/index.js';
import { enterNamespaces } from '../test/helpers/namespaces.js';
import { median } from './figures.js';

enterNamespaces();
// Not src: what tsx makes of it is slower than what tsc does.
const built = new URL('../dist/index.js', import.meta.url).href;
const { installIntercept, planIntercept } = (await import(built)) as typeof import('../src/index.js');

const options = { port: 50080, tcp: [80, 443, '8000-8999'], exclude: { to: ['10.0.0.0/8', 'fd00::/8'] } } as const;
const table = 'inet linux-tproxy-50080';
const up = String(planIntercept({ ...options, lifetime: 'permanent' }));
const down = [
  `nft delete table ${table}`,
  ...['-4', '-6'].flatMap((family) => [
    ...[100, 99, 98].map((priority) => `ip ${family} rule delete priority ${priority}`),
    `ip ${family} route flush table 100`,
  ]),
].join('\n');
/** The same script with one `ip -batch` for each family, in the place of its first `ip`. */
function batched(script: string): string {
  const lines = script.split('\n');
  const calls = (flag: string) => lines.filter((line) => line.startsWith(`ip ${flag} `));
  return lines
    .flatMap((line) => {
      const [, flag] = /^ip (-[46]) /.exec(line) ?? [];
      if (flag === undefined) return [line];
      if (line !== calls(flag)[0]) return [];
      return [`ip ${flag} -batch - <<'EOF'`, ...calls(flag).map((call) => call.slice('ip -4 '.length)), 'EOF'];
    })
    .join('\n');
}
const prefixes = Array.from(
  { length: 10_000 },
  (_, index) => `172.${16 + (index >> 12)}.${(index >> 4) & 255}.${(index & 15) << 4}/29`,
);

function run(script: string, command: [string, ...string[]] = ['sh', '-eu']): void {
  const [file, ...args] = command;
  const { status, stderr } = spawnSync(file, args, { input: script, encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
}
const nft = (script: string) => run(script, ['nft', '-f', '-']);
/** The commands of a script, each with what it reads. */
const commandsOf = (script: string) =>
  [...script.matchAll(/^(\S.*?)(?: <<'EOF'\n([\s\S]*?)\nEOF)?$/gm)].map(([, command = '', input = '']) => ({
    command: command.split(' ') as [string, ...string[]],
    input,
  }));
const elements = (verb: string, list: readonly string[]) =>
  nft(`${verb} element ${table} exclude_to4 { ${list.join(', ')} }`);

interface Work {
  readonly work: () => unknown;
  /** Not measured. */
  readonly undo?: () => unknown;
  /** How often in one round: the round's time is the median. */
  readonly times?: number;
}
/** Rounds of ours and theirs, one after the other: what slows the machine down for a while slows both. */
interface Comparison {
  readonly what: string;
  readonly ours: Work;
  readonly theirs: Work;
  readonly rounds: number;
}

async function time({ work, undo, times = 1 }: Work): Promise<number> {
  const measured: number[] = [];
  for (let each = 0; each < times; each++) {
    const started = performance.now();
    await work();
    measured.push(performance.now() - started);
    await undo?.();
  }
  return median(measured);
}

const rows: { readonly what: string; readonly ours: number; readonly theirs: number; readonly ratio: number }[] = [];
async function compare({ what, ours, theirs, rounds }: Comparison): Promise<void> {
  const measured: (readonly [ours: number, theirs: number])[] = [];
  for (let round = -WARMING; round < rounds; round++) {
    const one = await time(ours);
    await sleep(SETTLED_MS);
    const other = await time(theirs);
    await sleep(SETTLED_MS);
    if (round >= 0) measured.push([one, other]);
  }
  rows.push({
    what,
    ours: median(measured.map(([ours]) => ours)),
    theirs: median(measured.map(([, theirs]) => theirs)),
    ratio: median(measured.map(([ours, theirs]) => theirs / ours)),
  });
}
const WARMING = 5;
/** So many installations until V8 has compiled what it will compile. */
const WARM = 3000;
/** The kernel clears away what was deleted some 10 to 20 ms later, and keeps who comes next waiting. */
const SETTLED_MS = 50;

const once = (more: Partial<InstallOptions> = {}) => ({
  work: async () => (await installIntercept({ ...options, ...more })).uninstall(),
});
const byShell = (scripts: readonly string[]) => ({
  work: () => {
    for (const script of scripts) run(script);
  },
});
const commands = [up, down].flatMap(commandsOf);
const oneByOne = {
  work: () => {
    for (const { command, input } of commands) run(input, command);
  },
};
const often = { times: 50 };
for (let warming = 0; warming < WARM; warming++) await once().work();
await compare({ what: 'install and uninstall', ours: { ...once(), ...often }, theirs: oneByOne, rounds: 40 });
await compare({
  what: 'the same, beside a shell script',
  ours: { ...once(), ...often },
  theirs: byShell([up, down]),
  rounds: 40,
});
await compare({
  what: 'the same, beside one with `ip -batch`',
  ours: { ...once(), ...often },
  theirs: byShell([up, down].map(batched)),
  rounds: 20,
});
await compare({
  what: 'the same, with a guard of its own',
  ours: { ...once(), undo: () => sleep(200) },
  theirs: oneByOne,
  rounds: 20,
});
await compare({
  what: 'the same, without repair',
  ours: { ...once({ repair: false }), ...often },
  theirs: oneByOne,
  rounds: 10,
});
await compare({
  what: 'the same, permanent (no guard)',
  ours: { ...once({ repair: false, lifetime: 'permanent' }), ...often },
  theirs: oneByOne,
  rounds: 10,
});

const rules = await installIntercept({ ...options, repair: false, lifetime: 'permanent' });
const one = ['192.0.2.0/24'];
await compare({
  what: 'one prefix',
  ours: { work: () => rules.exclude.to.add(one), undo: () => rules.exclude.to.delete(one), times: 50 },
  theirs: { work: () => elements('add', one), undo: () => elements('delete', one) },
  rounds: 20,
});
await compare({
  what: '10,000 prefixes',
  ours: { work: () => rules.exclude.to.add(prefixes), undo: () => rules.exclude.to.delete(prefixes), times: 3 },
  theirs: { work: () => elements('add', prefixes), undo: () => nft(`flush set ${table} exclude_to4`) },
  rounds: 10,
});
/** How long the event loop was held up, and by `work` itself: 99 of 100 times at most. */
async function delayed(rounds: number, work: () => Promise<unknown>) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const took: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const started = performance.now();
    const done = work();
    took.push(performance.now() - started);
    await done;
  }
  delay.disable();
  took.sort((one, other) => one - other);
  return { all: delay.percentile(99) / 1e6, itself: took[Math.floor(took.length * 0.99)] as number };
}
const idle = await delayed(1000, () => sleep(1));
const changing = await delayed(3000, () => Promise.all([rules.exclude.to.add(one), rules.exclude.to.delete(one)]));
await rules.uninstall();

const ms = (value: number) => (value < 10 ? value.toFixed(2) : value.toFixed(1));
const text = `# Rules: this package beside \`nft\` and \`ip\`

Milliseconds, from JavaScript, of one run of \`npm run bench:rules\`: ${cpus().length} CPUs (${cpus()[0]?.model}), Linux ${release()}, Node ${process.versions.node}. This
package (warm: after ${WARM.toLocaleString('en')} installations; up to 50 times) and the spawned tools take turns; each figure is the median of the rounds, the ratio that of the ratios inside
a round. The tools run what \`linux-tproxy plan\` prints: two \`nft\` and ${commands.length - 2} \`ip\` for an installation and its removal, \`nft -f -\` for
prefixes. JavaScript spawns each of them (\`spawnSync\`); in two rows it spawns a shell instead, whose script runs the tools, or two \`nft\` and
four \`ip -batch\`. (To spawn a process from Node's takes longer than from a shell's, which is much smaller.)

| | this package | spawned tools | ratio |
|---|---|---|---|
${rows.map(({ what, ours, theirs, ratio }) => `| ${what} | ${ms(ours)} | ${ms(theirs)} | ${ratio.toFixed(1)} |`).join('\n')}

Default rules have a guard process. It is kept for a tenth of a second, and serves the next installation too: the row with a guard of
its own waits until it has gone.

While single prefixes came and went the event loop was held up by ${ms(changing.all)} ms at most (99 of 100 times; the timer's own millisecond is in
it), with nothing to do by ${ms(idle.all)} ms. By the calls themselves it was by ${ms(changing.itself)} ms: the rest is garbage collection and whoever else wants a CPU.

What bounds them (from profiles on this machine, warm, in milliseconds; they vary by half from run to run):

- Install and uninstall is to be 50 times as fast as the tools that JavaScript spawns (first row); in runs on a machine with little else to do it
  was 69 to 73 times. Beside a shell script that spawns them it was 46 to 49 times (what else runs slows whoever has to start processes more).
  Of 1.1 go 0.08 until the kernel is asked (options, eight questions); while it answers (0.1) the rules are worked out (0.07), put into bytes (0.07)
  and handed to the thread (0.02) that makes messages of them. Then 0.08 to have the answers in JavaScript, 0.1 to decide and to tell guard and
  kernel, 0.3 until it has done it. To begin the watch takes 0.05, to end it and take all down 0.2. Of all this the kernel's own are 0.35 to 0.5,
  which the very same bytes take when they are sent by synchronous calls (about a third of that is looking for the types of 105 expressions by
  name), and four times 0.01 to wake the thread. Where that thread and JavaScript's share a CPU, as the scheduler likes it, they wait for each other
  for 0.2 to 0.3. A guard that has to be started is 1 to 3 more.
- 10,000 prefixes are to be 2.5 times as fast. 10 of the time are the kernel's, 4 making the messages, 3 reading the text, the
  rest numbers of any length (bigint), which are compared and collected.
`;
console.log(text);
writeFileSync(new URL('RULES.md', import.meta.url), text);
