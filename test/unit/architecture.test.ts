/**
 * Who may know whom: the rules of the house as one table, checked over every source file. A row that keeps a good change
 * out is changed here, on purpose; it is not worked around.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';

interface Rule {
  readonly rule: string;
  /** The files it is about. */
  readonly files: RegExp;
  /** What these may import or include of the project (paths from its root) and of packages; the rest is a violation. */
  readonly only?: RegExp;
  /** What their imports or includes never are. */
  readonly never?: RegExp;
  /** What stands nowhere in them. */
  readonly text?: RegExp;
  /** A file and a line in it that the rule must find. */
  readonly violation: readonly [file: string, line: string];
}

const ground = 'src-native/[^/]+\\.h';
const cpp = (...rooms: string[]) =>
  new RegExp(`^(<.*>|${[ground, ...rooms.map((room) => `src-native/${room}`)].join('|')})`);

const rules: readonly Rule[] = [
  // ---- TypeScript ------------------------------------------------------------------------------------------------------
  {
    rule: 'only native.ts loads the addon',
    files: /^src\/(?!native\.ts)/,
    text: /node-gyp-build|\.node['"`]|process\.dlopen/,
    violation: ['src/relay.ts', "const load = require('node-gyp-build');"],
  },
  {
    rule: 'types know types only',
    files: /^src\/(netlink\/)?types(\/.*)?\.ts$/,
    only: /^src\/(netlink\/)?types(\/.*)?\.ts$/,
    violation: ['src/types.ts', "import type { Native } from './native.js';"],
  },
  {
    rule: 'the plan and what is made of it is pure',
    files:
      /^src\/intercept\/(plan|nftables|iptables|text|statement|ranges|once|ruleset|named-sets|segments|counters|canonical|mangle|iptables-words|routing|clearing)\.ts$/,
    only: /^(node:net|src\/(types|errors|pack|netlink\/(types|userdata|check\/schema)|intercept\/(plan|nftables|iptables|text|statement|ranges|once|ruleset|named-sets|segments|counters|canonical|mangle|iptables-words|routing|clearing))\.ts)$/,
    violation: ['src/intercept/plan.ts', "import { readFileSync } from 'node:fs';"],
  },
  {
    rule: 'of node:net, pure files take the reading of addresses',
    files:
      /^src\/intercept\/(plan|nftables|iptables|text|statement|ranges|once|ruleset|named-sets|segments|counters|canonical|mangle|iptables-words|routing|clearing)\.ts$/,
    text: /import (?!\{ isIP \}).* from 'node:net'/,
    violation: ['src/intercept/text.ts', "import { connect, isIP } from 'node:net';"],
  },
  {
    rule: 'native.ts knows nobody of the house but types, errors and how values are packed',
    files: /^src\/native\.ts$/,
    only: /^(node:.*|src\/(errors|pack|types|netlink\/types)\.ts)$/,
    violation: ['src/native.ts', "import { relay } from './relay.js';"],
  },
  {
    rule: 'errors can be made without the addon',
    files: /^src\/errors\.ts$/,
    text: /^import (?!type ).*\.\//m,
    violation: ['src/errors.ts', "import { type NativeFailure, native } from './native.js';"],
  },
  {
    rule: 'the netlink sockets know nobody above them',
    files: /^src\/netlink\//,
    only: /^(node:.*|src\/(native|errors|types|netlink\/.*)\.ts)$/,
    violation: ['src/netlink/index.ts', "export { planIntercept } from '../intercept/plan.js';"],
  },
  {
    rule: 'only those who install, hand over, repair and take down change the host',
    files: /^src\/(?!doctor\/|(native|intercept\/(install|installation|installed|handover|reap|watch))\.ts|netlink\/)/,
    text: /\.((rule|route|address)(Add|Replace|Delete)|link(Add|Set|Delete)|commit)(Sync)?\(/,
    violation: ['src/server.ts', '  await socket.ruleAdd(rule);'],
  },
  {
    rule: 'the doctor has rules checked, and commits none',
    files: /^src\/doctor\//,
    text: /\.((rule|route|address)(Add|Replace|Delete)|link(Add|Set|Delete)|commit)(Sync)?\((?!.*dryRun: true)/,
    violation: ['src/doctor/kernel.ts', '  await kernel.nftables.commit(plan.nftables);'],
  },
  {
    rule: 'nothing is shelled out; only the command `run` starts what the user asks for',
    files: /^src\/(?!cli\/run\.ts)/,
    never: /^(node:)?child_process$/,
    violation: ['src/intercept/install.ts', "import { execFile } from 'node:child_process';"],
  },
  {
    rule: 'only errors.ts shapes Errors',
    files: /^src\/(?!errors\.ts)/,
    text: /class \w+ extends \w*Error\b/,
    violation: ['src/connect.ts', 'export class ConnectError extends Error {'],
  },
  {
    rule: 'index.ts only re-exports',
    files: /^src\/(netlink\/)?index\.ts$/,
    text: /^(export )?(default|const|let|var|async|function|class|if|for|await)\b/m,
    violation: ['src/index.ts', 'const server = createTransparentServer();'],
  },
  {
    rule: 'nobody imports the faces, index.ts and the command',
    files: /^src\/(?!cli\/)/,
    never: /^src\/(index\.ts|cli\/)/,
    violation: ['src/server.ts', "import { relay } from './index.js';"],
  },
  // ---- C++ -------------------------------------------------------------------------------------------------------------
  {
    rule: 'only the addon and its bindings know Node',
    files: /^src-native\/(?!addon\.cc|bindings\/)/,
    never: /<(napi|node_api|node|v8|uv)\b.*>/,
    violation: ['src-native/relay/thread.cc', '#include <napi.h>'],
  },
  {
    rule: 'what lies on the ground stands on libc',
    files: new RegExp(`^${ground}$`),
    only: cpp(),
    violation: ['src-native/unique_fd.h', '#include "socket/error.h"'],
  },
  {
    rule: 'netlink knows libc, and how to enter a namespace',
    files: /^src-native\/netlink\//,
    only: cpp('netlink/', 'socket/netns\\.h'),
    violation: ['src-native/netlink/connection.cc', '#include "rtnetlink/rule.h"'],
  },
  {
    rule: 'rtnetlink stands on netlink',
    files: /^src-native\/rtnetlink\//,
    only: cpp('netlink/', 'rtnetlink/', 'socket/netns\\.h'),
    violation: ['src-native/rtnetlink/rule.cc', '#include "nftables/object.h"'],
  },
  {
    rule: 'nftables stands on netlink',
    files: /^src-native\/nftables\//,
    only: cpp('netlink/', 'nftables/'),
    violation: ['src-native/nftables/batch.cc', '#include "rtnetlink/rule.h"'],
  },
  {
    rule: 'sockets know libc',
    files: /^src-native\/socket\//,
    only: cpp('socket/'),
    violation: ['src-native/socket/transparent.cc', '#include "netlink/message.h"'],
  },
  {
    rule: 'the relay knows sockets',
    files: /^src-native\/relay\//,
    only: cpp('socket/', 'relay/'),
    violation: ['src-native/relay/connection.cc', '#include "netlink/message.h"'],
  },
  {
    rule: "the guard's process knows libc, and of the house only what it is asked",
    files: /^src-native\/(guard\/main|broker\/serve)\.cc$/,
    only: /^(<.*>|src-native\/(guard\/process|broker\/(serve|request))\.h)$/,
    violation: ['src-native/guard/main.cc', '#include "netlink/connection.h"'],
  },
  {
    rule: 'a child process is started by what knows libc, and how to enter a namespace',
    files: /^src-native\/child\//,
    only: cpp('child/', 'socket/(error|netns)\\.h'),
    violation: ['src-native/child/process.cc', '#include "netlink/message.h"'],
  },
  {
    rule: 'who starts the guard knows libc',
    files: /^src-native\/guard\//,
    only: cpp('guard/', 'broker/serve\\.h', 'child/', 'socket/error\\.h'),
    violation: ['src-native/guard/process.cc', '#include "netlink/message.h"'],
  },
  {
    rule: 'the broker knows sockets',
    files: /^src-native\/broker\//,
    only: cpp('broker/', 'child/', 'socket/'),
    violation: ['src-native/broker/process.cc', '#include "relay/thread.h"'],
  },
  {
    rule: 'includes are written from src-native',
    files: /^src-native\//,
    never: /^(?!<|src-native\/)/,
    violation: ['src-native/relay/thread.cc', '#include "../unique_fd.h"'],
  },
];

/** What a source text imports or includes: project files by their path from the root, packages and system headers as written. */
function importsOf(file: string, source: string): string[] {
  if (file.startsWith('src-native/')) {
    return [...source.matchAll(/^\s*#\s*include\s+(?:"(.+?)"|(<.+?>))/gm)].map(([, own, system]) =>
      own ? join('src-native', own) : (system as string),
    );
  }
  const specifiers = source.matchAll(/(?:\bfrom\s+|\bimport\s*\(?\s*|\brequire\(\s*)(['"])(.+?)\1/g);
  return [...specifiers].map(([, , specifier = '']) =>
    specifier.startsWith('.') ? join(dirname(file), specifier).replace(/\.js$/, '.ts') : specifier,
  );
}

function violations({ files, only, never, text }: Rule, file: string, source: string): string[] {
  if (!files.test(file)) return [];
  const imports = importsOf(file, source);
  return [
    ...imports.filter((target) => (only && !only.test(target)) || never?.test(target)),
    ...(text?.exec(source) ?? []).slice(0, 1),
  ].map((what) => `${file}: ${what}`);
}

const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
const sources = ['src', 'src-native'].flatMap((directory) =>
  readdirSync(join(root, directory), { recursive: true, encoding: 'utf8' })
    .map((name) => join(directory, name))
    .filter((file) => /\.(ts|cc|h)$/.test(file))
    .map((file) => ({ file, source: readFileSync(join(root, file), 'utf8') })),
);

const test = suite('architecture');
for (const rule of rules) {
  test(rule.rule, () => {
    assert.equal(
      sources.flatMap(({ file, source }) => violations(rule, file, source)),
      [],
    );
    assert.is(violations(rule, ...rule.violation).length, 1, 'the rule does not find its own example');
  });
}

test('every import resolves to a file of the project, a package, or Node', () => {
  const known = new Set(sources.map(({ file }) => file));
  const unknown = sources.flatMap(({ file, source }) =>
    importsOf(file, source).filter((target) => /^src(-native)?\//.test(target) && !known.has(target)),
  );
  assert.equal(unknown, []);
  assert.ok(sources.some(({ file, source }) => importsOf(file, source).length > 0));
});

test.run();
