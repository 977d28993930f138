/** The units of examples/systemd: systemd has no complaint, and the service works with the socket as systemd passes it. */
import { execFileSync, spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { installIntercept } from '../../src/index.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { oneUser } from '../helpers/namespaces.js';
import { testUnless } from '../helpers/skip.js';
import { dial, greet } from '../helpers/talk.js';

const test = suite('systemd');
const directory = fileURLToPath(new URL('../../examples/systemd', import.meta.url));
const units = readdirSync(directory).filter((name) => /\.(service|socket)$/.test(name));
let lab: Lab;
test.before(async () => {
  lab = await createLab();
});
test.after(() => lab.dispose());

const noAnalyzer = spawnSync('systemd-analyze', ['--version']).error && 'systemd-analyze is not installed';
testUnless(noAnalyzer, test, 'systemd-analyze verify', () => {
  assert.is(units.length, 4);
  // What the machine's own units have to complain about is not ours.
  const verify = (...files: string[]) =>
    spawnSync('systemd-analyze', ['verify', '--man=no', '--recursive-errors=no', ...files], { encoding: 'utf8' });
  const { status, stdout, stderr } = verify(...units.map((unit) => `${directory}/${unit}`));
  const ours = `${stdout}${stderr}`.split('\n').filter((line) => line.includes('tproxy'));
  assert.equal([status, ours], [0, []]);
  execFileSync('sh', [
    '-euc',
    'mkdir /run/bad; sed s/^Transparent=yes/Transparent=perhaps/ "$1" >/run/bad/tproxy-bad.socket',
    'sh',
    `${directory}/tproxy-proxy.socket`,
  ]);
  const bad = verify('/run/bad/tproxy-bad.socket');
  assert.match(`${bad.stdout}${bad.stderr}`, /Failed to parse boolean/, 'the check finds what is wrong');
});

test('the service: no capability, relays, and ends at SIGTERM', async () => {
  await greet(lab, 'server', 'server', 80);
  await using _rules = await installIntercept({ port: 50080, tcp: [80], netns: lab.netns('router') });
  const helper = (name: string) => fileURLToPath(new URL(`../helpers/${name}`, import.meta.url));
  const program = lab.spawn(
    'router',
    ...(['env', ...(oneUser ? [] : ['AS_NOBODY=1']), 'python3', helper('listen_fds.py')] as const),
    JSON.stringify([{ name: 'proxy', transparent: true }]),
    ...[process.execPath, '--import', import.meta.resolve('tsx'), `${directory}/proxy.mjs`],
  );
  await program.until(/^ready$/m);
  for (const family of ['ipv4', 'ipv6'] as const) {
    const call = await dial(lab, 'client', addresses.server[family], 80);
    assert.equal([call.who, call.sawAddress], ['server', addresses.routerUpstream[family]]);
    await call.hangUp();
    await program.until(family === 'ipv4' ? /^10\.77\.1\.2:\d+ to 10\.77\.2\.2:80: \d+ bytes/m : /to \[fd77:2::2\]:80/);
  }
  assert.is(await program.stop(), 0);
});

test.run();
