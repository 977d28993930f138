/** Tests that a host cannot run: skipped with a reason, which the runner prints (and counts as a failure in CI). */
import type { Test } from 'uvu';

/** Adds the test where `missing` is empty, and says why not where it is a reason. */
export function testUnless<Context>(
  missing: string | undefined | false,
  test: Test<Context>,
  ...[name, run]: Parameters<Test<Context>>
): void {
  if (missing) {
    test.skip(name, run);
    console.log(`skipped: ${name}: ${missing}`);
  } else {
    test(name, run);
  }
}
