/** The runner: whatever goes wrong in a file must be seen in its totals and its exit code. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';

const test = suite<{ directory: string }>('runner');
test.before.each((context) => {
  context.directory = mkdtempSync(join(tmpdir(), 'runner-'));
});
test.after.each(({ directory }) => rmSync(directory, { recursive: true }));

/** Runs files with these bodies, `test` being a uvu suite in them; gives the runner's output and exit code. */
function run(directory: string, bodies: Record<string, string>, args: string[] = [], env: NodeJS.ProcessEnv = {}) {
  for (const [name, body] of Object.entries(bodies)) {
    const [first = '', ...rest] = body.split('\n');
    const head = `import { suite } from '${import.meta.resolve('uvu')}'; const test = suite('s');`;
    mkdirSync(directory, { recursive: true });
    writeFileSync(
      join(directory, `${name}.test.mts`),
      first.startsWith('//') ? [first, head, ...rest].join('\n') : head + body,
    );
  }
  const { CI: _, ...inherited } = process.env;
  const { stdout, status } = spawnSync(process.execPath, ['--import', 'tsx', 'test/run.ts', ...args, directory], {
    encoding: 'utf8',
    env: { ...inherited, ...env },
  });
  return { stdout, status, last: stdout.trimEnd().split('\n').at(-1) };
}

test('counts tests, and closes with one line', ({ directory }) => {
  const { last, status } = run(directory, {
    one: "test('a', () => {}); test('b', () => {}); test.run();",
    two: "test('a', () => {}); test.run();",
  });
  assert.is(last, '3 passed, 0 failed');
  assert.is(status, 0);
});

test('a failing test fails, with its output', ({ directory }) => {
  const { last, status, stdout } = run(directory, {
    one: "test('a', () => {}); test('b', () => { throw new Error('broken') }); test.run();",
  });
  assert.is(last, '1 passed, 1 failed');
  assert.is(status, 1);
  assert.match(stdout, 'broken');
});

test('whatever keeps a file from telling good totals is a failure', ({ directory }) => {
  const bodies = {
    empty: '',
    unloadable: "import './nowhere.js'; test('a', () => {}); test.run();",
    leaving: "test('a', () => process.exit(0)); test.run();",
    waiting: "test('a', () => new Promise(() => {})); test.run();",
    hook: "test.before(() => { throw new Error('hook') }); test('a', () => {}); test.run();",
    code: "test('a', () => {}); test.run(); process.on('exit', () => { process.exitCode = 3 });",
  };
  const { stdout, last, status } = run(directory, bodies);
  for (const name of Object.keys(bodies)) assert.match(stdout, new RegExp(`/${name}\\.test\\.mts .* 1 FAILED `));
  assert.is(last, '1 passed, 6 failed');
  assert.is(status, 1);
});

test('a file that takes too long is killed', ({ directory }) => {
  const { last, stdout } = run(directory, { one: "test('a', () => { for (;;); }); test.run();" }, ['--timeout', '2']);
  assert.is(last, '0 passed, 1 failed');
  assert.match(stdout, 'took longer than 2 s');
});

test('a file that does not end after its last test is killed', ({ directory }) => {
  const body = "test('a', () => {}); test.run(); setInterval(() => {}, 1000);";
  const { last, stdout } = run(directory, { one: body }, ['--linger', '1']);
  assert.is(last, '1 passed, 1 failed');
  assert.match(stdout, 'has not ended after its last test');
});

test('a skip needs a reason, and fails in CI', ({ directory }) => {
  const body = "test('a', () => {}); test.skip('b', () => {}); test.run();";
  const reason = "console.log('skipped: b: no such kernel');";
  assert.is(run(directory, { one: body }).last, '1 passed, 1 failed');
  const explained = run(directory, { one: body + reason });
  assert.is(explained.last, '1 passed, 0 failed, 1 skipped');
  assert.match(explained.stdout, 'b: no such kernel');
  assert.is(run(directory, { one: body + reason }, [], { CI: 'true' }).last, '1 passed, 1 failed');
});

test('files marked so run alone', ({ directory }) => {
  const busy = (ms: number) => `
    import { existsSync, rmSync, writeFileSync } from 'node:fs';
    const [mark, seen] = ['busy', 'seen'].map((name) => new URL(name, import.meta.url));
    test('a', async () => {
      if (existsSync(mark)) {
        writeFileSync(seen, '');
        throw new Error('not alone');
      }
      writeFileSync(mark, '');
      for (const end = Date.now() + ${ms}; Date.now() < end && !existsSync(seen); )
        await new Promise((resolve) => setTimeout(resolve, 50));
      rmSync(mark);
    });
    test.run();`;
  const alone = `// runs alone${busy(500)}`;
  assert.is(run(directory, { one: alone, two: alone }).last, '2 passed, 0 failed');
  assert.is(run(directory, { one: busy(30_000), two: busy(30_000) }).last, '1 passed, 1 failed');
});

test.run();
