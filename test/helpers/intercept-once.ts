/**
 * Installs an interception in this process's own namespace and prints what became of it as one line of JSON.
 *   intercept-once.ts OPTIONS [hold]     hold: stays until killed; otherwise uninstalls (twice, if it must) and ends
 */
import { installIntercept } from '../../src/index.js';

const options = JSON.parse(process.argv[2] ?? '{}');
try {
  const rules = await installIntercept(options);
  const { fwmark, table, priority, name } = rules.plan;
  console.log(JSON.stringify({ installed: { fwmark, table, priority, name } }));
  if (process.argv[3] === 'hold') {
    rules.on('repaired', ({ repaired }) => console.log(`repaired ${repaired.join()}`));
    console.log('ready');
    setInterval(() => {}, 1000);
  } else {
    await rules.uninstall().catch((error: Error) => {
      console.log(JSON.stringify({ again: error.message }));
      return rules.uninstall();
    });
    console.log(JSON.stringify({ uninstalled: true }));
  }
} catch (error) {
  const { name, message, code, step } = error as Error & { code?: string; step?: string };
  console.log(JSON.stringify({ error: { name, code, step, message } }));
}
