/**
 * Private namespaces for a whole program: network, mounts (with a /run of its own, so that `ip netns add` is private) and
 * processes; without root inside a user namespace. Whatever happens in them ends with them, also when the program is killed.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** Set inside: the process id, seen from outside, of the process that holds the namespaces. */
const holder = 'LINUX_TPROXY_NAMESPACES';

export const inNamespaces = process.env[holder] !== undefined;
export const rootless = process.getuid?.() !== 0;

/** Whether there is but one user here, as in a user namespace made without root. */
export const oneUser = !/^\s*0\s+0\s+4294967295\s*$/.test(readFileSync('/proc/self/uid_map', 'utf8'));

/** The command line that runs `command` in namespaces of its own; it dies with the process that starts it. */
export function namespaced(command: readonly string[]): [string, ...string[]] {
  return [
    'env',
    // Debian's users do not have sbin on their PATH.
    ...[`PATH=${process.env['PATH']}:/usr/sbin:/sbin`, 'setpriv', '--pdeathsig', 'KILL'],
    ...['sh', '-c', `export ${holder}=$$; exec "$@"`, 'sh'],
    ...['unshare', '--net', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc'],
    ...(rootless ? ['--user', '--map-root-user'] : []),
    // The shell stays as process 1: it reaps orphans, and signals work on the program as they do everywhere.
    ...['sh', '-c', 'mount -t tmpfs tmpfs /run && ip link set lo up && "$@"; exit $?', 'sh', ...command],
  ];
}

/** Runs the current program again in namespaces of its own, unless it is in them already. */
export function enterNamespaces(): void {
  if (inNamespaces) return;
  const [file, ...args] = namespaced([process.execPath, ...process.execArgv, ...process.argv.slice(1)]);
  const { status, error } = spawnSync(file, args, { stdio: 'inherit' });
  if (error) throw error;
  process.exit(status ?? 1);
}

/** The command that opens a shell in a network namespace from outside, for debugging. */
export function enterCommand(path: string): string {
  const pid = process.env[holder];
  const user = oneUser ? ' --user --preserve-credentials' : '';
  return `nsenter --target ${pid} --mount${user} --net=/proc/${pid}/root${path}`;
}
