/** connectTransparent(): a connection from any address and port, as a net.Socket. */
import { isIP, Socket } from 'node:net';
import { checkOptions, errorFromFailure, invalidType, invalidValue, outOfRange } from './errors.js';
import { ownMark } from './intercept/marks.js';
import { type NativeConnectOptions, native } from './native.js';
import { relayThread } from './thread.js';
import type { SourcePort } from './types.js';

export interface ConnectTransparentOptions {
  readonly address: string;
  readonly port: number;
  /** The address the other side sees; it need not be this host's. Default: this host's own. */
  readonly localAddress?: string;
  /** The port the other side sees; how strictly is up to `sourcePort`. */
  readonly localPort?: number;
  /**
   * `ephemeral` (default without a localPort): chosen at connect time, unique only together with the destination, so that one
   * address can have more connections than there are ports. `preserve` (default with one): exactly localPort, or an error.
   * `prefer`: localPort, or another when it is in use.
   */
  readonly sourcePort?: SourcePort;
  /**
   * SO_MARK: the mark of this connection's packets. Default: where this process has an interception installed,
   * `rules.plan.socketMark`, so that it does not intercept itself.
   */
  readonly mark?: number;
  /** Path of the network namespace to connect in. */
  readonly netns?: string;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  readonly allowHalfOpen?: boolean;
}

/** `localPortKept`: whether a wanted localPort was had; with sourcePort `prefer` it may be another. */
export type TransparentConnection = Socket & { readonly localPortKept?: boolean };

const OPTIONS = [
  'address',
  'port',
  'localAddress',
  'localPort',
  'sourcePort',
  'mark',
  'netns',
  'timeoutMs',
  'signal',
  'allowHalfOpen',
];

/**
 * Connects to `address:port` from `localAddress`, which may be foreign.
 * Equivalent to: socket; setsockopt IP_TRANSPARENT, IP_BIND_ADDRESS_NO_PORT, SO_REUSEADDR; bind; connect.
 * The answers come back only if they are routed through this host and diverted to it: `intercept: {}` sees to the latter.
 * Needs CAP_NET_ADMIN or CAP_NET_RAW for a foreign address. See ip(7), IP_TRANSPARENT.
 */
export function connectTransparent(options: ConnectTransparentOptions): Promise<TransparentConnection> {
  checkOptions('connectTransparent options', options, OPTIONS);
  const { netns, signal, allowHalfOpen = false, mark = ownMark(options.netns), ...rest } = options;
  const connect = nativeConnectOptions({ ...rest, ...(mark !== undefined && { mark }) });
  signal?.throwIfAborted();
  const thread = relayThread({ netns });
  return new Promise((resolve, reject) => {
    const id = thread.native.connect(connect);
    const release = thread.hold();
    let aborted = false;
    const abort = () => {
      aborted = true;
      thread.native.destroy(id);
    };
    signal?.addEventListener('abort', abort, { once: true });
    thread.handle(id, (event) => {
      thread.forget(id);
      release();
      signal?.removeEventListener('abort', abort);
      if (event.kind === 'connected') {
        const socket = new Socket({ fd: event.fd, readable: true, writable: true, allowHalfOpen });
        native.disown(event.fd);
        const { localPortKept } = event;
        if (!aborted) return resolve(localPortKept === undefined ? socket : Object.assign(socket, { localPortKept }));
        socket.destroy();
      }
      reject(
        aborted
          ? signal?.reason
          : event.kind === 'failed'
            ? errorFromFailure(event.failure)
            : new Error(`unexpected ${event.kind}`),
      );
    });
  });
}

/** Checks what native code trusts. */
export function nativeConnectOptions(
  options: Omit<ConnectTransparentOptions, 'netns' | 'signal' | 'allowHalfOpen'>,
): NativeConnectOptions {
  const { address, port, localAddress, mark, timeoutMs } = options;
  const family = checkAddress('address', address);
  checkPort('port', port, 1);
  if (localAddress !== undefined && checkAddress('localAddress', localAddress) !== family)
    throw invalidValue('localAddress', `of the same family as the address (${address})`, localAddress);
  const sourcePort = options.sourcePort ?? (options.localPort ? 'preserve' : 'ephemeral');
  if (!['ephemeral', 'prefer', 'preserve'].includes(sourcePort))
    throw invalidValue('sourcePort', "'ephemeral', 'prefer' or 'preserve'", sourcePort);
  const localPort = sourcePort === 'ephemeral' ? 0 : options.localPort;
  if (localPort === undefined) throw invalidType('localPort', `given with sourcePort '${sourcePort}'`, localPort);
  checkPort('localPort', localPort, sourcePort === 'ephemeral' ? 0 : 1);
  if (mark !== undefined && !(Number.isInteger(mark) && mark >= 0 && mark <= 0xffffffff))
    throw outOfRange('mark', 'a 32-bit number', mark);
  if (timeoutMs !== undefined && !(Number.isFinite(timeoutMs) && timeoutMs >= 0))
    throw outOfRange('timeoutMs', 'a time in milliseconds', timeoutMs);
  return {
    address,
    port,
    ...(localAddress !== undefined && { localAddress }),
    ...(localPort > 0 && { localPort, localPortOptional: sourcePort === 'prefer' }),
    ...(mark !== undefined && { mark }),
    ...(timeoutMs !== undefined && { timeoutMs }),
  };
}

function checkAddress(name: string, address: unknown): 4 | 6 {
  const version = typeof address === 'string' ? isIP(address) : 0;
  if (version === 0) throw invalidValue(name, 'an IP address (names are not looked up)', address);
  return version as 4 | 6;
}

export function checkPort(name: string, port: unknown, from: number): void {
  if (typeof port !== 'number') throw invalidType(name, 'a number', port);
  if (!Number.isInteger(port) || port < from || port > 65535)
    throw outOfRange(name, `an integer from ${from} to 65535`, port);
}
