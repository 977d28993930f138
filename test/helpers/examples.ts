/** The programs of examples/, started as a user would, but with the package's sources in the place of its build. */
import { fileURLToPath } from 'node:url';
import type { Lab, Program } from './lab.js';

/** In the router, for what comes from the client. `linux-tproxy` is found by tsconfig's `paths`. */
export async function startExample(lab: Lab, name: string, ...args: string[]): Promise<Program> {
  const main = fileURLToPath(new URL(`../../examples/${name}/main.mjs`, import.meta.url));
  const options = ['--port', '50080', '--interface', 'cli0', ...args];
  const program = lab.spawn('router', process.execPath, '--import', import.meta.resolve('tsx'), main, ...options);
  await program.until(/^ready\b.*$/m);
  return program;
}
