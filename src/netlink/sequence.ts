/** Several calls at the price of one. */
import { native } from '../native.js';

/**
 * Makes the calls of netlink sockets that `calls` makes, on one or several sockets, one after the other without coming back
 * to JavaScript in between, which takes longer than most of them. Those behind one that fails are not made, and are
 * rejected with its error. Gives what `calls` gives: the promises, one for each call.
 *
 *     const [rules, routes] = await Promise.all(sequence(() => [socket.ruleList(), socket.routeList({ table: 100 })]));
 */
export function sequence<const T extends readonly Promise<unknown>[]>(calls: () => T): T {
  return native.sequence(calls);
}
