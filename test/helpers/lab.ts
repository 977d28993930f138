/**
 * The lab: client - router - server, three network namespaces over veth, IPv4 and IPv6. Every kernel and interop test plays
 * in it, and so does the demo. Importing this file moves the whole program into private namespaces (namespaces.ts), so a
 * test file works alone, is never in another's way and leaves nothing behind, however it ends.
 *
 *     client eth0 ──────── cli0 router srv0 ──────── eth0 server
 *      10.77.1.2      10.77.1.1   10.77.2.1      10.77.2.2
 *       fd77:1::2      fd77:1::1   fd77:2::1      fd77:2::2
 */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { compiled } from './compiled.js';
import { enterCommand, enterNamespaces } from './namespaces.js';
import { snapshot } from './snapshot.js';

enterNamespaces();

export type Host = 'client' | 'router' | 'server';
export const hosts: readonly Host[] = ['client', 'router', 'server'];

export const addresses = {
  client: { ipv4: '10.77.1.2', ipv6: 'fd77:1::2' },
  /** The router's, towards the client. */
  router: { ipv4: '10.77.1.1', ipv6: 'fd77:1::1' },
  /** The router's, towards the server. */
  routerUpstream: { ipv4: '10.77.2.1', ipv6: 'fd77:2::1' },
  server: { ipv4: '10.77.2.2', ipv6: 'fd77:2::2' },
} as const;

export interface LabOptions {
  /** Of every veth. Default 1500. */
  readonly mtu?: number;
  /** Set when the links exist: name a link or `all`, `default` is of no use. */
  readonly sysctls?: Partial<Record<Host, Readonly<Record<string, string | number>>>>;
  /** More addresses (no prefix length) behind which the client or the server stands; the router has routes to them. */
  readonly moreAddresses?: { readonly client?: readonly string[]; readonly server?: readonly string[] };
}

/** A program that runs in the lab. */
export interface Program {
  readonly process: ChildProcess;
  /** What it wrote to stdout and stderr so far. */
  output(): string;
  /** Waits until `pattern` matches in the output; rejects with the output when the program ends or 60 s pass before. */
  until(pattern: RegExp, timeoutMs?: number): Promise<RegExpMatchArray>;
  /** Ends it with SIGTERM, or another signal, and waits. Its exit code, or null when the signal ended it. */
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

export interface Lab extends AsyncDisposable {
  /** The path of a host's network namespace, as `netns` options want it. */
  netns(host: Host): string;
  /** Runs a command and gives its stdout; throws with its stderr. Blocks, so nothing in this process answers meanwhile. */
  exec(host: Host, command: string, ...args: string[]): string;
  /** The same without blocking. */
  run(host: Host, command: string, ...args: string[]): Promise<string>;
  spawn(host: Host, command: string, ...args: string[]): Program;
  /** Starts a script by Node (TypeScript too) and waits for its line `ready ...`. */
  node(host: Host, script: string | URL, ...args: string[]): Promise<Program>;
  /** The host's rule set, policy rules and routes as text, equal whenever nothing but traffic has changed. */
  snapshot(host: Host): string;
  dispose(): Promise<void>;
}

const netns = (host: Host) => `/run/netns/${host}`;
const within = (host: Host, command: readonly string[]) => [`--net=${netns(host)}`, '--', ...command];

export async function createLab(options: LabOptions = {}): Promise<Lab> {
  execFileSync('sh', ['-euc', setup(options)], { stdio: ['ignore', 'pipe', 'inherit'] });
  const programs = new Set<Program>();

  const lab: Lab = {
    netns,
    exec: (host, ...command) =>
      execFileSync('nsenter', within(host, command), { encoding: 'utf8', stdio: 'pipe', maxBuffer: 2 ** 28 }),
    run: (host, ...command) =>
      new Promise((resolve, reject) => {
        execFile('nsenter', within(host, command), { maxBuffer: 2 ** 28 }, (error, stdout) => {
          if (error) reject(error);
          else resolve(stdout);
        });
      }),
    spawn(host, ...command) {
      const program = follow(spawn('nsenter', within(host, command), { stdio: ['pipe', 'pipe', 'pipe'] }));
      programs.add(program);
      return program;
    },
    async node(host, script, ...args) {
      const path = script instanceof URL ? fileURLToPath(script) : script;
      const program = lab.spawn(host, process.execPath, path.endsWith('.ts') ? compiled(path) : path, ...args);
      await program.until(/^ready\b.*$/m);
      return program;
    },
    snapshot: (host) => snapshot(netns(host)),
    async dispose() {
      await Promise.all([...programs].map((program) => program.stop('SIGKILL')));
      for (const host of hosts) execFileSync('ip', ['netns', 'delete', host]);
    },
    [Symbol.asyncDispose]: () => lab.dispose(),
  };

  // Neighbours are looked up here, so that no test waits for it or loses a packet by it. Refused is as good as accepted.
  await Promise.all(
    [addresses.server.ipv4, addresses.server.ipv6].map((address) =>
      lab.run('client', 'timeout', '5', 'bash', '-c', `: </dev/tcp/${address}/9`).catch(() => {}),
    ),
  );
  if (process.env['LINUX_TPROXY_DEBUG']?.split(',').includes('lab')) {
    for (const host of hosts) console.error(`lab: ${host}: ${enterCommand(netns(host))}`);
  }
  return lab;
}

function setup({ mtu = 1500, sysctls = {}, moreAddresses = {} }: LabOptions): string {
  const family = (address: string) => (address.includes(':') ? { ip: '-6', length: 128 } : { ip: '-4', length: 32 });
  const more = (['client', 'server'] as const).flatMap((host) =>
    (moreAddresses[host] ?? []).map((address) => ({ host, address, ...family(address) })),
  );
  return [
    ...hosts.map((host) => `ip netns add ${host}`),
    // Before the links exist, so that they inherit it.
    ...hosts.map((host) => sysctl(host, 'net.ipv6.conf.default.accept_dad', 0)),
    sysctl('router', 'net.ipv4.ip_forward', 1),
    sysctl('router', 'net.ipv6.conf.all.forwarding', 1),
    // Refused where the machine does not list cubic as allowed for everybody (net.ipv4.tcp_allowed_congestion_control).
    ...hosts.map((host) => `${sysctl(host, 'net.ipv4.tcp_congestion_control', 'cubic')} 2>/dev/null || true`),
    // Where both ends of a veth have the same index, the kernel takes it for no veth and reports its carrier a second late.
    `ip link add eth0 index 10 mtu ${mtu} netns client type veth peer name cli0 mtu ${mtu} netns router`,
    `ip link add eth0 index 20 mtu ${mtu} netns server type veth peer name srv0 mtu ${mtu} netns router`,
    ...[
      ['client', 'eth0', addresses.client],
      ['router', 'cli0', addresses.router],
      ['router', 'srv0', addresses.routerUpstream],
      ['server', 'eth0', addresses.server],
    ].flatMap((row) => {
      const [host, link, { ipv4, ipv6 }] = row as [Host, string, (typeof addresses)[Host]];
      return [
        `ip -n ${host} address add ${ipv4}/24 dev ${link}`,
        `ip -n ${host} address add ${ipv6}/64 dev ${link} nodad`,
        `ip -n ${host} link set ${link} up`,
      ];
    }),
    ...hosts.map((host) => `ip -n ${host} link set lo up`),
    `ip -n client route add default via ${addresses.router.ipv4}`,
    `ip -n client route add default via ${addresses.router.ipv6}`,
    `ip -n server route add default via ${addresses.routerUpstream.ipv4}`,
    `ip -n server route add default via ${addresses.routerUpstream.ipv6}`,
    ...more.flatMap(({ host, address, ip, length }) => [
      `ip -n ${host} ${ip} address add ${address}/${length} dev lo`,
      `ip -n router ${ip} route add ${address}/${length} via ${addresses[host][ip === '-6' ? 'ipv6' : 'ipv4']}`,
    ]),
    ...hosts.flatMap((host) => Object.entries(sysctls[host] ?? {}).map(([key, value]) => sysctl(host, key, value))),
  ].join('\n');
}

const sysctl = (host: Host, key: string, value: string | number) =>
  `nsenter --net=${netns(host)} -- sysctl -qw '${key}=${value}'`;

function follow(child: ChildProcess): Program {
  let output = '';
  let ended = false;
  const collect = (chunk: string) => {
    output += chunk;
    child.emit('output');
  };
  child.stdout?.setEncoding('utf8').on('data', collect);
  child.stderr?.setEncoding('utf8').on('data', collect);
  const closed = once(child, 'close').finally(() => {
    ended = true;
  });
  return {
    process: child,
    output: () => output,
    async until(pattern, timeoutMs = 60_000) {
      const late = AbortSignal.timeout(timeoutMs);
      for (;;) {
        const match = output.match(pattern);
        if (match) return match;
        if (late.aborted || ended) {
          throw new Error(`${child.spawnargs.join(' ')}: no ${pattern} in its output:\n${output}`);
        }
        await Promise.race([once(child, 'output', { signal: late }), closed]).catch(() => {});
      }
    },
    async stop(signal = 'SIGTERM') {
      child.kill(signal);
      await closed;
      return child.exitCode;
    },
  };
}
