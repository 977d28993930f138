// runs alone
/** The demo, as a newcomer starts it, with both of its servers. */
import { spawnSync } from 'node:child_process';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';

const demo = (...args: string[]) =>
  spawnSync(process.execPath, ['--import', 'tsx', 'scripts/demo.ts', ...args], {
    // It makes namespaces of its own, inside those of this test.
    env: { ...process.env, LINUX_TPROXY_NAMESPACES: undefined },
    encoding: 'utf8',
  });

const test = suite('demo');

for (const [title, args] of [
  ['with the server by Node', []],
  ['with nginx', ['--nginx']],
] as const) {
  test(title, () => {
    const { stdout, stderr, status } = demo('--size', '16M', ...args);
    assert.is(status, 0, stdout + stderr);
    assert.is(stderr, '');
    for (const line of [
      /router takes {2}10\.77\.1\.2:\d+ → 10\.77\.2\.2:80 ✔/,
      /router takes {2}\[fd77:1::2\]:\d+ → \[fd77:2::2\]:80 ✔/,
      /server logs {3}GET \/ from 10\.77\.1\.2 ✔/,
      /server logs {3}GET \/ from fd77:1::2 ✔/,
      /client reads {2}Hello 10\.77\.1\.2, this is 10\.77\.2\.2\. ✔/,
      /client reads {2}Hello fd77:1::2, this is fd77:2::2\. ✔/,
      /download {6}16 MiB in \d+\.\d\d s, .* ✔/,
      /sha256 .* as sent ✔/,
      /router {8}rule set, rules and routes as before ✔/,
      /this machine {2}its rules and routes were never touched ✔/,
    ]) {
      assert.match(stdout, line);
    }
    assert.is(stdout.match(/✔/g)?.length, 14);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are for terminals.
    assert.not.match(stdout, /\x1b/);
    for (const line of stdout.split('\n')) assert.ok(line.length <= 100, line);
  });
}

test('--verbose prints the commands, --help the options, and what is not understood is refused', () => {
  assert.match(demo('--size', '1M', '--verbose').stdout, /ip -6 rule add .*\n[\s\S]*table inet linux-tproxy-50080 \{/);
  assert.match(demo('--help').stdout, '--nginx');
  const wrong = demo('--size', 'huge');
  assert.is(wrong.status, 2);
  assert.match(wrong.stderr, 'Not a size: huge');
});

test.run();
