/** Who listens on this host, as the kernel lists it. */
import { native } from './native.js';

/** proc_pid_net(5): the second column is the local address and port, in hexadecimal; the fourth the state. */
const LISTENING = { tcp: '0A', udp: '07' } as const; // TCP_LISTEN; of UDP sockets TCP_CLOSE: not connected

/** Whether somebody has a socket there that takes what comes in for the first time, of either family. */
export function isListening(protocol: 'tcp' | 'udp', port: number, netns: string | undefined): boolean {
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  const row = new RegExp(`^ *\\d+: [0-9A-F]+:${hex} \\S+ ${LISTENING[protocol]} `, 'm');
  return native
    .readFiles([`/proc/thread-self/net/${protocol}`, `/proc/thread-self/net/${protocol}6`], netns)
    .some((text) => text !== undefined && row.test(text));
}
