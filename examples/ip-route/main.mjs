/**
 * `ip route`, written with linux-tproxy/netlink: lists the routes of a table as `ip` prints them, adds and deletes them, and
 * tells of changes: `npm start -- help`.
 */
import { readWords, run, short, tableOf } from '../ip.mjs';

const help = `usage: npm start -- [-4 | -6] [list] [table TABLE]
       npm start -- [-4 | -6] add | del [ TYPE ] PREFIX [ via ADDRESS ] [ dev IF ] [ src ADDRESS ] [ metric NUMBER ] [ table TABLE ]
       npm start -- monitor

  TYPE := unicast | local | blackhole | unreachable | prohibit | throw
`;
/** @type {import('linux-tproxy/netlink').Route['type'][]} */
const TYPES = ['unicast', 'local', 'broadcast', 'blackhole', 'unreachable', 'prohibit', 'throw'];
/** @type {Record<number, string>} */
const PROTOCOLS = { 2: 'kernel', 3: 'boot', 4: 'static', 9: 'ra', 16: 'dhcp' };
const BOOT = 3;

/** @param {import('linux-tproxy/netlink').Route} route */
function format(route) {
  const { type, destination, gateway, dev, protocol, scope, preferredSource, metric, family, nexthops = [] } = route;
  const words = [
    ...(type === 'unicast' ? [] : [type]),
    short(destination, family),
    ...(gateway ? ['via', gateway] : []),
    ...(dev === undefined ? [] : ['dev', dev]),
    ...(protocol === BOOT ? [] : ['proto', PROTOCOLS[protocol ?? 0] ?? protocol]),
    ...(scope === 'universe' ? [] : ['scope', scope]),
    ...(preferredSource ? ['src', preferredSource] : []),
    ...(metric ? ['metric', metric] : []),
  ];
  const ways = nexthops.map((hop) => `\n\tnexthop via ${hop.gateway} dev ${hop.dev} weight ${hop.weight}`);
  return words.join(' ') + ways.join('');
}

/**
 * @param {'ipv4' | 'ipv6'} family
 * @param {string[]} words
 * @returns {import('linux-tproxy/netlink').Route}
 */
function parse(family, words) {
  const type = TYPES.find((each) => each === words[0]) ?? 'unicast';
  if (type === words[0]) words.shift();
  const destination = words.shift() ?? '';
  /** @type {import('linux-tproxy/netlink').Route} */
  const route = { family, type, destination, table: type === 'local' ? 255 : 254 };
  return readWords(words, route, {
    via: (word) => ({ gateway: word }),
    dev: (word) => ({ dev: word }),
    src: (word) => ({ preferredSource: word }),
    metric: (word) => ({ metric: Number(word) }),
    table: (word) => ({ table: tableOf(word) }),
  });
}

await run({
  help,
  list: async (socket, family, [, table = 'main']) =>
    (await socket.routeList({ family, table: tableOf(table) })).map(format),
  add: (socket, family, words) => socket.routeAdd(parse(family, words)),
  del: (socket, family, words) => socket.routeDelete(parse(family, words)),
  told: (change) => (change.kind === 'route' ? format(change.route) : undefined),
});
