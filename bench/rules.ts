/**
 * How long does it take to put an interception up and down: by this package, and by spawning `ip` and `nft` as a script
 * would. Runs in namespaces of its own: `npm run bench:rules`.
 */
import { spawnSync } from 'node:child_process';
import Benchmark from 'benchmark';
import { installIntercept, planIntercept } from '../src/index.js';
import { enterNamespaces } from '../test/helpers/namespaces.js';

enterNamespaces();

const options = { port: 50080, tcp: [80, 443, '8000-8999'], exclude: { to: ['10.0.0.0/8', 'fd00::/8'] } } as const;
const up = String(planIntercept({ ...options, lifetime: 'permanent' }));
const down = [
  'nft delete table inet linux-tproxy-50080',
  ...['-4', '-6'].flatMap((family) => [
    ...[100, 99, 98].map((priority) => `ip ${family} rule delete priority ${priority}`),
    `ip ${family} route flush table 100`,
  ]),
].join('\n');

function run(script: string): void {
  const { status, stderr } = spawnSync('sh', ['-eu'], { input: script, encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
}

const seconds: number[] = [];
const suite = new Benchmark.Suite('install and uninstall');
suite
  .add('linux-tproxy', {
    defer: true,
    fn: async (deferred: { resolve(): void }) => {
      const rules = await installIntercept(options);
      await rules.uninstall();
      deferred.resolve();
    },
  })
  .add('ip and nft, spawned', () => {
    run(up);
    run(down);
  })
  .on('cycle', ({ target }: { target: Benchmark }) => {
    console.log(String(target));
    seconds.push(target.stats.mean);
  })
  .on('complete', () => {
    const [ours = Number.NaN, theirs = Number.NaN] = seconds;
    console.log(`ratio: ${(theirs / ours).toFixed(1)}`);
  })
  .run({ async: true });
