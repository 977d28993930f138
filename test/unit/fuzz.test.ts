// runs alone: the first time it builds
/**
 * A short run of `npm run fuzz`: changed messages for every decoder, and a kernel that lies to every transaction, under
 * address and undefined behaviour sanitizers. The build is kept in build/sanitize.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';

const test = suite('fuzz');
const script = fileURLToPath(new URL('../../scripts/fuzz.sh', import.meta.url));

test('no crash, no hang, no wrong success', () => {
  const { status, stdout, stderr } = spawnSync('sh', [script, '50000', '5000'], { encoding: 'utf8' });
  assert.is(status, 0, `${stdout}${stderr}`);
  assert.match(stdout, /^50000 messages, [1-9]\d* values$/m);
  assert.match(stdout, /^fuzz_connection 5000 \d+$/m); // with the seed that runs the same again
});

test.run();
