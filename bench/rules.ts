/**
 * How long does it take to change what is installed: by this package, and by spawning `ip` and `nft` as a script would, with
 * the same commands that `plan` prints. Runs what is published (`dist`) in namespaces of its own and writes the table into
 * bench/RULES.md: `npm run bench:rules`.
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import type { InstallOptions } from '../src/index.js';
import { enterNamespaces } from '../test/helpers/namespaces.js';

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
const elements = (verb: string, list: readonly string[]) =>
  nft(`${verb} element ${table} exclude_to4 { ${list.join(', ')} }`);

/** Median in milliseconds. `undo` is not measured. */
async function measure(rounds: number, work: () => unknown, undo: () => unknown = () => {}): Promise<number> {
  const times: number[] = [];
  for (let round = -rounds; round < rounds; round++) {
    const started = performance.now();
    await work();
    if (round >= 0) times.push(performance.now() - started); // before that, warming up
    await undo();
  }
  return times.sort((a, b) => a - b)[rounds >> 1] as number;
}

const once = (more: Partial<InstallOptions> = {}, rounds = 100, undo?: () => unknown) =>
  measure(rounds, async () => (await installIntercept({ ...options, ...more })).uninstall(), undo);
const spawned = () =>
  measure(10, () => {
    run(up);
    run(down);
  });

const rows: { readonly what: string; readonly ours: number; readonly theirs: number }[] = [];
const theirs = await spawned();
rows.push({ what: 'install and uninstall', ours: await once(), theirs });
rows.push({ what: 'the same, with a guard of its own', ours: await once({}, 20, () => sleep(200)), theirs });
rows.push({ what: 'the same, without repair', ours: await once({ repair: false }), theirs });
rows.push({
  what: 'the same, permanent (no guard)',
  ours: await once({ repair: false, lifetime: 'permanent' }),
  theirs,
});

const rules = await installIntercept({ ...options, repair: false, lifetime: 'permanent' });
const one = ['192.0.2.0/24'];
rows.push({
  what: 'one prefix',
  ours: await measure(
    100,
    () => rules.exclude.to.add(one),
    () => rules.exclude.to.delete(one),
  ),
  theirs: await measure(
    20,
    () => elements('add', one),
    () => elements('delete', one),
  ),
});
rows.push({
  what: '10,000 prefixes',
  ours: await measure(
    10,
    () => rules.exclude.to.add(prefixes),
    () => rules.exclude.to.delete(prefixes),
  ),
  theirs: await measure(
    5,
    () => elements('add', prefixes),
    () => nft(`flush set ${table} exclude_to4`),
  ),
});
/** How long the event loop was held up, 99 of 100 times, and `work` of itself at most. */
async function delayed(rounds: number, work: () => Promise<unknown>) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  let longest = 0;
  for (let round = 0; round < rounds; round++) {
    const started = performance.now();
    const done = work();
    longest = Math.max(longest, performance.now() - started);
    await done;
  }
  delay.disable();
  return { all: delay.percentile(99) / 1e6, longest };
}
const idle = await delayed(1000, () => sleep(1));
const changing = await delayed(3000, () => Promise.all([rules.exclude.to.add(one), rules.exclude.to.delete(one)]));
await rules.uninstall();

/** Measured apart from this bench. */
const KERNEL_MS = 0.27;
const ms = (value: number) => (value < 10 ? value.toFixed(2) : value.toFixed(1));
const text = `# Rules: this package beside \`nft\` and \`ip\`

Medians in milliseconds, from JavaScript, of one run of \`npm run bench:rules\`: ${cpus().length} CPUs (${cpus()[0]?.model}), Linux ${release()}, Node ${process.versions.node}.
The spawned tools run what \`linux-tproxy plan\` prints: two \`nft\` and ${(up + down).match(/^ip /gm)?.length} \`ip\` for an installation and its removal, \`nft -f -\` for prefixes.

| | this package | spawned tools | ratio |
|---|---|---|---|
${rows.map(({ what, ours, theirs }) => `| ${what} | ${ms(ours)} | ${ms(theirs)} | ${(theirs / ours).toFixed(1)} |`).join('\n')}

Default rules have a guard process. It is kept for a tenth of a second, and serves the next installation too: the second row waits
until it has gone.

While single prefixes came and went the event loop was held up by ${ms(changing.all)} ms at most (99 of 100 times; the timer's own millisecond is in
it), with nothing to do by ${ms(idle.all)} ms. No call took more than ${ms(changing.longest)} ms of its thread: the rest is garbage collection and whoever else wants a CPU.

What bounds them (from profiles on this machine, warm, in milliseconds; they vary by half from run to run):

- Install and uninstall is to be 50 times as fast as the tools. ${KERNEL_MS} are the kernel's, which the very same bytes take when a program in C sends
  them (of that 0.19 the batch with chains, sets and rules, and 0.04 emptying the table): ${(theirs / KERNEL_MS).toFixed(0)} times at the very best. Some 0.6 are 1,500
  members of objects that go from JavaScript to the addon one by one, 0.5 making and checking those objects, 0.2 looking at the host,
  and 0.5 going to a thread of libuv's pool and back, four times. A guard that has to be started is 1 to 3 more.
- 10,000 prefixes are to be 2.5 times as fast. 10 of the time are the kernel's, 4 making the messages, 4 reading the text, the
  rest finding out what changes.
`;
console.log(text);
writeFileSync(new URL('RULES.md', import.meta.url), text);
