// runs alone
/**
 * The packed thing, as a user gets it: `npm pack`, installed into an empty directory, without scripts, without a compiler.
 * The build is that of build-prebuilds.sh, in a directory of its own.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { namespaced } from '../helpers/namespaces.js';

const root = resolve(import.meta.dirname, '../..');
const directory = mkdtempSync(join(tmpdir(), 'linux-tproxy-pack-'));
process.on('exit', () => rmSync(directory, { recursive: true }));

execFileSync('npm', ['pack', '--foreground-scripts', '--pack-destination', directory], { cwd: root, stdio: 'inherit' });
const tarball = join(directory, readdirSync(directory).find((name) => name.endsWith('.tgz')) as string);
const files = execFileSync('tar', ['-tf', tarball], { encoding: 'utf8' }).trim().replaceAll('package/', '').split('\n');

// Else Node looks for a package further up.
writeFileSync(join(directory, 'package.json'), '{}');
const modules = join(directory, 'node_modules');
const installed = join(modules, 'linux-tproxy');
mkdirSync(installed, { recursive: true });
execFileSync('tar', ['-xf', tarball, '--strip-components=1', '-C', installed]);
// Its one dependency.
cpSync(join(root, 'node_modules/node-gyp-build'), join(modules, 'node-gyp-build'), { recursive: true });
// Node, and nothing else, on PATH.
mkdirSync(join(directory, 'bin'));
symlinkSync(process.execPath, join(directory, 'bin/node'));

const test = suite('package');

const run = (code: string) =>
  spawnSync('node', ['--input-type=module', '--eval', code], {
    cwd: directory,
    env: { PATH: join(directory, 'bin'), PREBUILDS_ONLY: '1' },
    encoding: 'utf8',
  });

test('has what it needs and no more', () => {
  const tops = [...new Set(files.map((file) => file.split('/')[0]))].sort();
  assert.is(tops.join(' '), 'CHANGELOG.md CMakeLists.txt LICENSE README.md dist package.json prebuilds src-native');
  for (const file of ['LICENSE', 'CHANGELOG.md', 'dist/index.js', 'dist/index.d.ts', 'src-native/addon.cc']) {
    assert.ok(files.includes(file), file);
  }
  assert.is(files.filter((file) => file.endsWith('.node')).length, 1);
});

const addon = files.find((file) => file.endsWith('.node')) as string;
const guard = addon.replace(/node$/, 'guard');

for (const [file, libraries] of [
  [addon, /^(libc|libm|libgcc_s|ld-linux.*)\.so/],
  [guard, /^libc\.so/],
] as const)
  test(`${file} is stripped and brings its own C++ library`, () => {
    const binary = join(installed, file);
    const dynamic = execFileSync('objdump', ['--private-headers', binary], { encoding: 'utf8' });
    const needed = [...dynamic.matchAll(/NEEDED +(\S+)/g)].map(([, name]) => name as string);
    assert.ok(needed.length > 0);
    assert.equal(
      needed.filter((name) => !libraries.test(name)),
      [],
    );
    assert.match(spawnSync('nm', [binary], { encoding: 'utf8' }).stderr, 'no symbols');
  });

test('its guard is found and started, and does its work', () => {
  const code = `
    const { RouteSocket } = await import('linux-tproxy/netlink');
    const socket = new RouteSocket();
    const rule = { family: 'ipv4', action: 'lookup', table: 99, priority: 4000 };
    socket.guard([{ verb: 'delete', kind: 'rule', rule }]);
    await socket.ruleAdd(rule);
    process.kill(process.pid, 'SIGKILL');`;
  const shell = `PREBUILDS_ONLY=1 node --input-type=module --eval "$0" || true
    for i in $(seq 100); do ip rule | grep -q 'lookup 99' || break; sleep 0.1; done; ip rule`;
  const [file, ...args] = namespaced(['sh', '-c', shell, code]);
  const { stdout, stderr } = spawnSync(file, args, { cwd: directory, encoding: 'utf8' });
  assert.match(stdout, 'lookup main', stderr);
  assert.not.match(stdout, 'lookup 99', stderr);
  assert.not.match(stderr, 'guard');
});

test('works without scripts and without a compiler', () => {
  const { stdout, stderr } = run(`
    const tproxy = await import('linux-tproxy');
    const netlink = await import('linux-tproxy/netlink');
    const socket = new netlink.RouteSocket();
    const rules = await socket.ruleList('ipv4');
    console.log(typeof tproxy.createTransparentServer, rules.map((rule) => rule.priority ?? 0));
    socket.close();
  `);
  assert.is(stdout, 'function [ 0, 32766, 32767 ]\n', stderr);
});

test('npx finds the command, and it works', () => {
  // What npm install does with "bin", and all of it that needs no network.
  execFileSync('npm', ['rebuild', '--ignore-scripts', '--silent'], { cwd: directory, stdio: 'inherit' });
  const npx = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync('npx', ['--no-install', 'linux-tproxy', ...args], {
      cwd: directory,
      encoding: 'utf8',
      env: { ...process.env, PREBUILDS_ONLY: '1', npm_config_update_notifier: 'false' },
    });
    return { status, stdout, stderr: stderr.replace(/^npm .*\n/gm, '') };
  };
  const help = npx('--help');
  assert.equal([help.status, help.stderr], [0, '']);
  for (const verb of ['up', 'down', 'status', 'plan', 'run', 'completion'])
    assert.match(help.stdout, new RegExp(`^ {7}${verb} +\\S`, 'm'));
  assert.match(npx('plan', '--to-port', '50080').stdout, /^ip -4 route add local default/);
  assert.equal(npx('up', '--to-port', '50080', '--tcp', '80'), {
    status: 0,
    stdout: `50080: up\n  delivers to     :50080 (ipv4, ipv6)\n  nf_tables       table inet linux-tproxy-50080
  fwmark          0x1/0x3\n  routing table   100\n  priorities      97 to 100\n`,
    stderr: '',
  });
  assert.match(npx('status').stdout, '50080: permanent, intact');
  assert.equal(npx('down'), { status: 0, stdout: '50080: down\n', stderr: '' });
});

for (const example of ['ftp-proxy', 'http-proxy', 'smtp-proxy', 'tls-sni'])
  test(`npm start in examples/${example}`, () => {
    cpSync(join(root, 'examples'), join(directory, 'examples'), { recursive: true });
    const script = `
      npm start -- --port 50080 >log 2>&1 & npm=$!
      timeout 60 sh -c 'until grep -q "^ready" log; do sleep 0.05; done' || cat log
      nft list tables; kill $npm; wait $npm; echo "ended $?"; nft list tables; ip -details rule`;
    const [file, ...args] = namespaced(['sh', '-c', script]);
    const { stdout, stderr } = spawnSync(file, args, {
      cwd: join(directory, 'examples', example),
      encoding: 'utf8',
      env: { ...process.env, PREBUILDS_ONLY: '1' },
    });
    assert.match(stdout, /^table inet linux-tproxy-50080\nended 0\n0:/, stderr);
    assert.not.match(stdout, 'proto 84');
  });

test('a type check of a user finds the types', () => {
  writeFileSync(
    join(directory, 'user.mts'),
    "import { createTransparentServer } from 'linux-tproxy';\nconst wrong: number = createTransparentServer();\n",
  );
  cpSync(join(root, 'node_modules/@types'), join(directory, 'node_modules/@types'), { recursive: true });
  cpSync(join(root, 'node_modules/undici-types'), join(directory, 'node_modules/undici-types'), { recursive: true });
  const options = '--strict --noEmit --module nodenext --target es2022 --types node --lib es2023,esnext.disposable';
  const { stdout } = spawnSync(join(root, 'node_modules/.bin/tsc'), [...options.split(' '), 'user.mts'], {
    cwd: directory,
    encoding: 'utf8',
  });
  const errors = stdout.trim().split('\n');
  assert.is(errors.length, 1, stdout);
  assert.match(stdout, "Type 'TransparentServer' is not assignable to type 'number'");
});

test.run();
