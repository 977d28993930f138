/**
 * Installs and uninstalls an interception over and over in this process's own namespace, and looks each time whether all of
 * it is there. Prints `done <rounds>`, or what was missing.
 *   intercept-rounds.ts OPTIONS ROUNDS
 */
import { installIntercept } from '../../src/index.js';

const options = JSON.parse(process.argv[2] ?? '{}');
const rounds = Number(process.argv[3]);
console.log('ready');
for (let round = 1; round <= rounds; round++) {
  const rules = await installIntercept(options);
  for (let look = 0; look < 2; look++) {
    const { missing } = await rules.verify();
    if (missing.length > 0)
      console.log(`round ${round}, ${JSON.stringify(rules.plan.priority)}: missing ${missing.join()}`);
    await new Promise((resolve) => setTimeout(resolve, 3));
  }
  await rules.uninstall();
}
console.log(`done ${rounds}`);
