/** Several processes that install and uninstall at the same time, each with a name of its own. */
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  type InstalledRules,
  type InterceptError,
  installIntercept,
  listInstalled,
  planIntercept,
  uninstallIntercept,
} from '../../src/index.js';
import { beginClearing } from '../../src/intercept/clearing.js';
import { closeKernel, openKernel } from '../../src/intercept/kernel.js';
import { clearAway } from '../../src/intercept/reap.js';
import { NftablesSocket } from '../../src/netlink/nftables.js';
import type { RouteSocket } from '../../src/netlink/route.js';
import { backends } from '../helpers/backends.js';
import { compiled } from '../helpers/compiled.js';
import { createLab, type Lab } from '../helpers/lab.js';
import { refusal } from '../helpers/refusal.js';
import { until } from '../helpers/wait.js';

const test = suite('concurrent');
let lab: Lab;
const helper = (name: string) => `test/helpers/${name}.ts`;
const options = (index: number, more = {}) => JSON.stringify({ tcp: [80 + index], port: 51000 + index, ...more });

test.before(async () => {
  lab = await createLab();
});
test.after(() => lab.dispose());

/** When the guards of those that were killed have done their work: the last of it is what is nobody's any more. */
async function nothingIsLeft(before: string): Promise<void> {
  await until(() => lab.snapshot('router') === before, 'as it was before').catch(() => {});
  assert.is(lab.snapshot('router'), before);
}

test('held at the same time by processes of both backends, no two share a mark, a table or a priority', async () => {
  const before = lab.snapshot('router');
  const holders = await Promise.all(
    Array.from({ length: 8 }, (_, index) =>
      lab.node(
        'router',
        helper('intercept-once'),
        options(index, { ownHost: index % 2 ? true : undefined, backend: index % 4 < 2 ? 'nftables' : 'iptables' }),
        'hold',
      ),
    ),
  );
  const plans = holders.map((each) => JSON.parse(each.output().split('\n')[0] ?? '').installed);
  const marks = plans.map(({ fwmark }) => fwmark.mask as number);
  assert.is(
    marks.reduce((sum, mask) => sum + mask, 0),
    marks.reduce((bits, mask) => bits | mask, 0),
  );
  assert.is(new Set(plans.map(({ table }) => table)).size, plans.length);
  const priorities = plans.map(({ priority }) => priority as number).sort((a, b) => a - b);
  for (const [index, priority] of priorities.slice(1).entries())
    assert.ok(priority - (priorities[index] ?? 0) >= 4, priorities.join());
  for (const holder of holders) await holder.stop('SIGKILL');
  await uninstallIntercept({ netns: lab.netns('router') });
  await nothingIsLeft(before);
});

/** Somebody who changes the rule set without a pause. */
function changeAllTheTime(): () => Promise<void> {
  lab.exec('router', 'nft', 'add table ip churn; add set ip churn s { type ipv4_addr; }');
  const change = 'nft add element ip churn s "{ 192.0.2.1 }"; nft delete element ip churn s "{ 192.0.2.1 }"';
  const churn = lab.spawn('router', 'sh', '-c', `while :; do ${change}; done`);
  return async () => {
    await churn.stop('SIGKILL');
    lab.exec('router', 'nft', 'delete table ip churn');
  };
}

for (const backend of backends)
  test(`${backend}: of several that want the same name at once one has it, and the others are told which`, async () => {
    const before = lab.snapshot('router');
    const wanted = options(0, { name: 'same', backend });
    // So that they learn of each other late, too: when they make the table, and not when they look.
    const endChurn = changeAllTheTime();
    const all = Array.from({ length: 4 }, () =>
      lab.spawn('router', process.execPath, compiled(helper('intercept-once')), wanted, 'hold'),
    );
    const results = await Promise.all(
      all.map(async (each) => JSON.parse((await each.until(/^\{.*\}$/m))[0]) as { error?: InterceptError }),
    );
    await endChurn();
    const holder = all[results.findIndex(({ error }) => !error)];
    const refusals = results.flatMap(({ error }) => error ?? []);
    assert.is(refusals.length, 3, JSON.stringify(results));
    for (const { code, message } of refusals) {
      assert.is(code, 'ERR_TPROXY_NAME_IN_USE');
      assert.match(message, `held by process ${holder?.process.pid} (node)`);
    }
    for (const each of all) await each.stop('SIGKILL');
    await uninstallIntercept({ netns: lab.netns('router') });
    await nothingIsLeft(before);
  });

test('coming and going, beside processes that are killed and somebody who changes the rule set all the time', async () => {
  const before = lab.snapshot('router');
  const endChurn = changeAllTheTime();
  const rounds = await Promise.all(
    Array.from({ length: 4 }, (_, index) => lab.node('router', helper('intercept-rounds'), options(index), '25')),
  );
  let looks = 0;
  const busy = { going: true };
  const looking = (async () => {
    const netns = lab.netns('router');
    const rules = await installIntercept({ tcp: [99], port: 51099, netns, lifetime: 'permanent' });
    for (; busy.going || looks < 6; looks++) {
      await rules.setOnDown(looks % 2 ? 'open' : 'closed');
      const own = (await listInstalled({ netns })).installed.find(({ port }) => port === 51099);
      assert.is(own?.intact, true);
      assert.is(own?.onDown, looks % 2 ? 'open' : 'closed');
    }
    await rules.uninstall();
  })();
  for (let kill = 0; kill < 3; kill++) {
    const mortal = await lab.node('router', helper('intercept-once'), options(10 + kill), 'hold');
    await mortal.stop('SIGKILL');
  }
  for (const each of rounds) {
    await each.until(/^done 25$/m, 90_000);
    assert.not.match(each.output(), 'missing');
  }
  busy.going = false;
  await looking;
  await endChurn();
  await Promise.all(rounds.map((each) => each.stop()));
  await uninstallIntercept({ netns: lab.netns('router') });
  await nothingIsLeft(before);
});

test('what a killed process has left is not taken for free while another one deletes it', async () => {
  const before = lab.snapshot('router');
  const netns = lab.netns('router');
  const left = String(planIntercept({ tcp: [80], port: 51000 })).match(/^ip .*$/gm) ?? [];
  lab.exec('router', 'sh', '-eu', '-c', left.join('\n'));
  const kernel = openKernel(netns);
  let other: Promise<InstalledRules> | undefined;
  // Between this one's look and its first deletion another one comes, and has all the time it needs.
  const route = new Proxy(kernel.route, {
    get: (target, key: keyof RouteSocket) => async (argument: never) => {
      if (key === 'ruleDelete') {
        other ??= installIntercept({ tcp: [80], port: 51000, netns, repair: false });
        await Promise.race([other, sleep(100)]);
      }
      return (target[key] as (argument: never) => unknown).call(target, argument);
    },
  });
  await clearAway({ ...kernel, route }, 100);
  const rules = await other;
  assert.equal(await rules?.verify(), { intact: true, missing: [] });
  await rules?.uninstall();
  closeKernel(kernel);
  await nothingIsLeft(before);
});

test('who waits in vain until another one has cleared away is told which', async () => {
  const before = lab.snapshot('router');
  const netns = lab.netns('router');
  const hanging = new NftablesSocket({ netns });
  await hanging.commit(beginClearing);
  const refused = await refusal<InterceptError>(installIntercept({ tcp: [80], port: 51000, netns }));
  assert.is(refused.code, 'ERR_TPROXY_INSTALL');
  const [, command = ''] = /`(nft .*?)`/.exec(refused.message) ?? [];
  assert.match(lab.exec('router', 'sh', '-c', command), /# progname \S+/);
  await hanging.close();
  await (await installIntercept({ tcp: [80], port: 51000, netns })).uninstall();
  await nothingIsLeft(before);
});

test.run();
