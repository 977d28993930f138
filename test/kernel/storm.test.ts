// takes long
/**
 * Batches of another process and of our own, so many that watches lose what the kernel tells (ENOBUFS) and that no generation
 * of the rule set lasts. What is damaged meanwhile is found and repaired, and whatever says that it is done is.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { installIntercept } from '../../src/index.js';
import { NftablesSocket, RouteSocket } from '../../src/netlink/index.js';
import { churn } from '../helpers/churn.js';
import { createLab, type Lab } from '../helpers/lab.js';
import { until } from '../helpers/wait.js';

const test = suite('storm');
let lab: Lab;
let netns: string;
test.before(async () => {
  lab = await createLab();
  netns = lab.netns('router');
});
test.after(() => lab.dispose());

/** None of which is the neighbour of another: they would be one prefix. */
const address = (index: number) => `198.18.${index >> 7}.${(index & 127) * 2}`;
/** What the kernel has, of such addresses. */
async function excluded(socket: NftablesSocket): Promise<string[]> {
  const [set] = await socket.list('elements', { family: 'inet', table: 'linux-tproxy-50080', set: 'exclude_to4' });
  return (set?.elements ?? []).filter(({ flags }) => !flags).map(({ key }) => key.join('.'));
}

test('what is added to a set while its table is made anew is in the new one', async () => {
  const rules = await installIntercept({ tcp: [80], port: 50080, netns, lifetime: 'permanent' });
  const socket = new NftablesSocket({ netns });
  const repairs: unknown[] = [];
  rules.on('repaired', (report) => repairs.push(report));
  for (let round = 1; round <= 5; round++) {
    const damage = lab.run('router', 'nft', 'insert', 'rule', 'inet', 'linux-tproxy-50080', 'syn', 'accept');
    for (let index = 0; repairs.length < round; index++) await rules.exclude.to.add(address(index));
    await damage;
    assert.equal(await excluded(socket), rules.exclude.to.values());
    await rules.exclude.to.replace([]);
  }
  await Promise.all([socket.close(), rules.uninstall()]);
});

test('a storm of changes: what is lost is told, what is damaged is repaired, what is done is there', async () => {
  const before = lab.snapshot('router');
  const rules = await installIntercept({ tcp: [80], port: 50080, netns, lifetime: 'permanent' });
  const repaired: string[] = [];
  const errors: Error[] = [];
  rules.on('repaired', (report) => repaired.push(...report.repaired));
  rules.on('error', (error) => errors.push(error));

  const lost = { nftables: 0, route: 0 };
  const sockets = { nftables: new NftablesSocket({ netns }), route: new RouteSocket({ netns }) };
  for (const kind of ['nftables', 'route'] as const)
    sockets[kind].watch((changes: readonly { kind: string }[]) => {
      lost[kind] += changes.filter(({ kind }) => kind === 'lost').length;
    });
  const theirs = await lab.node('router', new URL('../helpers/churn-child.ts', import.meta.url));
  const ours = churn({ name: 'ours', priority: 5000, size: 400 }, netns);

  // Beside all the rest: the sets change, and other interceptions come and go.
  const busy = { going: true };
  const added: string[] = [];
  const refused: unknown[] = [];
  const adding = (async () => {
    for (let index = 0; busy.going; index++) {
      const prefix = address(index);
      await rules.exclude.to.add(prefix).then(
        () => added.push(prefix),
        (error) => refused.push(error),
      );
      await sleep(1);
    }
  })();
  let rounds = 0;
  const comingAndGoing = (async () => {
    for (; busy.going; rounds++) {
      const passing = await installIntercept({ tcp: [81], port: 50081, netns });
      assert.equal((await passing.verify()).missing, []);
      await passing.uninstall();
    }
  })();

  const table = 'inet linux-tproxy-50080';
  const damages: readonly (readonly [command: string, repaired: RegExp])[] = [
    ['ip rule del pref 98', /^policy rule 98 \(ipv4\)$/],
    [`nft insert rule ${table} syn accept`, /: rules of chain syn/],
    ['ip -6 route flush table 100', /^route local default in table 100 \(ipv6\)$/],
    [`nft flush chain ${table} prerouting`, /: rules of chain prerouting/],
    [`nft 'add chain ${table} prerouting { policy drop; }'`, /: chain prerouting/],
    [`nft 'add table ${table} { flags dormant; }'`, /: its flags/],
    [`nft delete table ${table}`, /^table inet linux-tproxy-50080$/],
  ];
  try {
    await until(
      () => lost.nftables > 0 && lost.route > 0,
      () => `something is lost: ${JSON.stringify(lost)}`,
    );
    for (const [command, name] of damages) {
      repaired.length = 0;
      await lab.run('router', 'sh', '-euc', command);
      await until(
        () => repaired.some((what) => name.test(what)),
        () => `repaired after ${command}: ${repaired.join()} ${errors.join()}`,
      );
    }
  } finally {
    busy.going = false;
    await Promise.all([adding, comingAndGoing]);
    theirs.process.stdin?.write('\n');
    const [, batches] = await theirs.until(/^batches (\d+)$/m);
    console.log(
      `(batches: ours ${await ours.stop()}, theirs ${batches}; lost ${JSON.stringify(lost)}; ${rounds} others; ${added.length} added, ${refused.length} refused)`,
    );
  }
  assert.equal(errors, []);
  assert.ok(rounds > 0 && added.length > 0);
  assert.equal((await rules.verify()).missing, []);
  const known = rules.exclude.to.values();
  assert.equal(
    added.filter((prefix) => !known.includes(prefix)),
    [],
  );
  assert.equal(await excluded(sockets.nftables), known);
  await Promise.all([sockets.nftables.close(), sockets.route.close(), rules.uninstall()]);
  assert.is(lab.snapshot('router'), before);
});

test.run();
