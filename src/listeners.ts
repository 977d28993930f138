/** The sockets that a TransparentServer listens with. */
import { isIP } from 'node:net';
import { checkPort } from './connect.js';
import { invalidValue } from './errors.js';
import { parsePorts } from './intercept/ranges.js';
import { native } from './native.js';
import { passedListener } from './systemd.js';
import type { Family } from './types.js';

/** SYNs wait here while we are busy; the kernel cuts it to net.core.somaxconn. A short queue means SYN cookies. */
export const BACKLOG = 4096;

export interface ListenOptions {
  /** 0: any free one. A range, '40000-40100': the first of it that is free. */
  readonly port?: number | string;
  readonly host?: string;
  /**
   * Instead of port and host: the socket that systemd has opened, by its FileDescriptorName= (default: the name of its unit),
   * or `true` for the only one. It needs Transparent=yes, and then this process no capability.
   */
  readonly systemd?: string | true;
  readonly backlog?: number;
  readonly ipv6Only?: boolean;
  readonly reusePort?: boolean;
  readonly signal?: AbortSignal;
}

/** What can be meant. */
export function checkListen(options: ListenOptions): void {
  if (options.systemd !== undefined && (options.port ?? options.host) !== undefined)
    throw invalidValue('systemd', 'given without port and host: they are those of the socket', options.systemd);
  portsOf(options);
  if (options.host !== undefined && isIP(options.host) === 0)
    throw invalidValue('host', 'an IP address (names are not looked up)', options.host);
}

export interface ListenerNeeds {
  readonly threads: number;
  readonly netns: string | undefined;
  /** With IP_TRANSPARENT. */
  readonly transparent: boolean;
  readonly families: readonly Family[] | undefined;
  /** IPv4 has a socket of its own beside the wildcard, which costs a relay thread less. */
  readonly split: boolean;
}

interface ListenAddress {
  readonly address: string;
  readonly v6Only?: boolean;
}

/** For each thread: one, or one of each family; all on the same port. */
export function openListeners(options: ListenOptions, needs: ListenerNeeds): number[][] {
  const { threads, netns, transparent } = needs;
  const { host, systemd, backlog = BACKLOG } = options;
  if (systemd !== undefined) {
    if (threads > 1) throw invalidValue('threads', '1 with a socket that systemd has opened', threads);
    return [[passedListener(systemd, { transparent })]];
  }
  const reusePort = threads > 1 || options.reusePort === true;
  const open = (addresses: readonly ListenAddress[], port: number): number[][] => {
    const listeners: number[][] = Array.from({ length: threads }, () => []);
    let common = port;
    try {
      for (const ofThread of listeners)
        for (const each of addresses) {
          const more = { port: common, backlog, transparent, reusePort, ...(netns !== undefined && { netns }) };
          ofThread.push(native.openListener({ ...each, ...more }));
          common ||= native.socketAddress(ofThread[0] as number).port;
        }
      return listeners;
    } catch (error) {
      for (const fd of listeners.flat()) native.closeDescriptor(fd);
      throw error;
    }
  };
  const ports = portsOf(options);
  try {
    return firstFree(ports, (port) => open(addressesOf(options, needs), port));
  } catch (error) {
    if (host !== undefined || (error as NodeJS.ErrnoException).code !== 'EAFNOSUPPORT') throw error;
    return firstFree(ports, (port) => open([{ address: '0.0.0.0' }], port));
  }
}

/** The wildcard takes both families. */
function addressesOf({ host, ipv6Only = false }: ListenOptions, { families, split }: ListenerNeeds): ListenAddress[] {
  if (host !== undefined) return [{ address: host, v6Only: ipv6Only }];
  if (families && !families.includes('ipv6')) return [{ address: '0.0.0.0' }];
  if (!split || ipv6Only) return [{ address: '::', v6Only: ipv6Only }];
  return [{ address: '::', v6Only: true }, { address: '0.0.0.0' }];
}

export const isWildcard = (host: string | undefined): host is '0.0.0.0' | '::' | undefined =>
  host === undefined || host === '0.0.0.0' || host === '::';

/** From the first to the last that may be tried. */
function portsOf({ port = 0 }: ListenOptions): { first: number; last: number } {
  if (typeof port === 'number') {
    checkPort('port', port, 0);
    return { first: port, last: port };
  }
  const [range, more] = parsePorts('port', [port]);
  if (!range || more) throw invalidValue('port', "a port or a range such as '40000-40100'", port);
  return { first: Number(range.start), last: Number(range.end) };
}

function firstFree<T>({ first, last }: { first: number; last: number }, open: (port: number) => T): T {
  // One that the kernel has chosen (0) may be free in one family only.
  const tries = first === 0 ? 10 : last - first + 1;
  for (let at = 1; ; at++) {
    try {
      return open(first === 0 ? 0 : first + at - 1);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE' || at === tries) throw error;
    }
  }
}
