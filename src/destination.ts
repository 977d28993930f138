/** originalDestination(): where the client of an accepted connection meant to go, whatever brought it here. */
import type { Socket } from 'node:net';
import { invalidValue } from './errors.js';
import { native } from './native.js';
import { descriptorOf } from './relay.js';
import type { Endpoint } from './types.js';

/** `from`: who told. The socket's own name, as under TPROXY and where nothing was rewritten, or conntrack. */
export type OriginalDestination = Endpoint & { readonly from: 'sockname' | 'conntrack' };

/**
 * Where the client of an accepted TCP connection meant to go: under TPROXY, REDIRECT and DNAT, IPv4 and IPv6. IPv4 on a
 * dual-stack socket is told as IPv4. Needs no privilege.
 * Equivalent to: getsockname, getsockopt SO_ORIGINAL_DST (IP6T_SO_ORIGINAL_DST).
 *
 * @throws {TypeError} for a socket that is not connected
 * @throws {SocketError}
 */
export function originalDestination(socket: Socket): OriginalDestination {
  const fd = descriptorOf(socket);
  if (fd === undefined) throw invalidValue('socket', 'a connected net.Socket', 'closed, or none');
  return native.originalDestination(fd);
}
