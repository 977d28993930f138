/**
 * The sources and the programs of this directory as JavaScript, for processes that a test starts: tsx would take longer to
 * start than they to work. The runner compiles once for all files, a file that is run by itself when it needs it.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(import.meta.dirname, '../..');
const variable = 'LINUX_TPROXY_COMPILED';

/**
 * Unless it has been done: to a directory of its own that looks like the clone, for as long as this process lives. `dist`
 * belongs to who works in the clone.
 */
export function compile(): string {
  const done = process.env[variable];
  if (done !== undefined) return done;
  const directory = mkdtempSync(join(tmpdir(), 'linux-tproxy-compiled-'));
  process.on('exit', () => rmSync(directory, { recursive: true }));
  chmodSync(directory, 0o755); // some of them are run as another user
  for (const name of ['build', 'node_modules', 'package.json']) symlinkSync(join(root, name), join(directory, name));
  const configuration = join(directory, 'tsconfig.json');
  const compilerOptions = { noEmit: false, noCheck: true, rootDir: root, outDir: directory };
  const include = ['src', 'test/helpers'].map((path) => join(root, path));
  writeFileSync(
    configuration,
    JSON.stringify({ extends: join(root, 'tsconfig.json'), compilerOptions, include, exclude: [] }),
  );
  execFileSync(process.execPath, [join(root, 'node_modules/.bin/tsc'), '-p', configuration], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  process.env[variable] = directory;
  return directory;
}

/** The path of what has become of a file of the sources. */
export function compiled(source: string | URL): string {
  const path = source instanceof URL ? fileURLToPath(source) : resolve(root, source);
  return join(compile(), relative(root, path).replace(/\.ts$/, '.js'));
}
