/** What the kernel tells of a network namespace as text: sysctls and sockets. Everything else is asked by netlink. */
import { native } from './native.js';

/** By their names below /proc/sys, with slashes or as `sysctl` writes them; undefined where this kernel has no such thing. */
export function sysctls(netns: string | undefined, names: readonly string[]): (number | undefined)[] {
  const texts = native.readFiles(
    names.map((name) => `/proc/sys/${name.includes('/') ? name : name.replaceAll('.', '/')}`),
    netns,
  );
  return texts.map((text) => (text === undefined ? undefined : Number(text)));
}

/** A row of /proc/net/tcp and its like, proc_pid_net(5): ends and queue in hexadecimal, as they are written there. */
export interface SocketRow {
  readonly local: string;
  readonly remote: string;
  readonly state: string;
  /** What is to be sent, and to be read. */
  readonly queues: string;
  /** 0: nobody has it open. */
  readonly inode: string;
}

/** Of both families. */
export function sockets(protocol: 'tcp' | 'udp', netns: string | undefined): SocketRow[] {
  const files = [`/proc/thread-self/net/${protocol}`, `/proc/thread-self/net/${protocol}6`];
  const lines = native.readFiles(files, netns).flatMap((text = '') => text.trimEnd().split('\n').slice(1));
  return lines.map((line) => {
    const [, local = '', remote = '', state = '', queues = '', , , , , inode = ''] = line.trim().split(/\s+/);
    return { local, remote, state, queues, inode };
  });
}

/** TCP_LISTEN; of UDP sockets TCP_CLOSE: not connected. */
const LISTENING = { tcp: '0A', udp: '07' } as const;

/** Whether somebody has a socket there that takes what comes in for the first time, of either family. */
export function isListening(protocol: 'tcp' | 'udp', port: number, netns: string | undefined): boolean {
  const end = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  return sockets(protocol, netns).some(({ local, state }) => state === LISTENING[protocol] && local.endsWith(end));
}
