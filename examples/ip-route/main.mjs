/**
 * `ip route`, written with linux-tproxy/netlink: lists the routes of a table as `ip` prints them, adds and deletes them, and
 * tells of changes: `npm start -- help`.
 */
import { RouteSocket } from 'linux-tproxy/netlink';

const help = `usage: npm start -- [-4 | -6] [list] [table TABLE]
       npm start -- [-4 | -6] add | del [ TYPE ] PREFIX [ via ADDRESS ] [ dev IF ] [ src ADDRESS ] [ metric NUMBER ] [ table TABLE ]
       npm start -- monitor

  TYPE := unicast | local | blackhole | unreachable | prohibit | throw
`;
/** @type {import('linux-tproxy/netlink').Route['type'][]} */
const TYPES = ['unicast', 'local', 'broadcast', 'blackhole', 'unreachable', 'prohibit', 'throw'];
/** @type {Record<string, number>} */
const TABLES = { default: 253, main: 254, local: 255 };
/** @type {Record<number, string>} */
const PROTOCOLS = { 2: 'kernel', 3: 'boot', 4: 'static', 9: 'ra', 16: 'dhcp' };
const BOOT = 3;

/** @param {import('linux-tproxy/netlink').Route} route */
function format(route) {
  const { type, destination, gateway, dev, protocol, scope, preferredSource, metric, family } = route;
  const words = [
    ...(type === 'unicast' ? [] : [type]),
    destination.replace(family === 'ipv4' ? /\/32$/ : /\/128$/, ''),
    ...(gateway ? ['via', gateway] : []),
    ...(dev === undefined ? [] : ['dev', dev]),
    ...(protocol === BOOT ? [] : ['proto', PROTOCOLS[protocol ?? 0] ?? protocol]),
    ...(scope === 'universe' ? [] : ['scope', scope]),
    ...(preferredSource ? ['src', preferredSource] : []),
    ...(metric ? ['metric', metric] : []),
  ];
  return words.join(' ');
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
  const table = type === 'local' ? 255 : 254;
  /** @type {import('linux-tproxy/netlink').Route} */
  const route = { family, type, destination, table };
  /** @type {Record<string, (word: string) => object>} */
  const take = {
    via: (word) => ({ gateway: word }),
    dev: (word) => ({ dev: word }),
    src: (word) => ({ preferredSource: word }),
    metric: (word) => ({ metric: Number(word) }),
    table: (word) => ({ table: TABLES[word] ?? Number(word) }),
  };
  for (let word = words.shift(); word !== undefined; word = words.shift()) {
    const read = take[word];
    const value = words.shift();
    if (!read || value === undefined) throw new TypeError(`'${word}' cannot be understood\n${help}`);
    Object.assign(route, read(value));
  }
  return route;
}

const words = process.argv.slice(2);
/** @type {Record<string, 'ipv4' | 'ipv6'>} */
const families = { '-4': 'ipv4', '-6': 'ipv6' };
const family = families[words[0] ?? ''] ?? 'ipv4';
if (families[words[0] ?? '']) words.shift();
const [verb = 'list', ...rest] = words;
const socket = new RouteSocket();
try {
  if (verb === 'list') {
    const table = TABLES[rest[1] ?? 'main'] ?? Number(rest[1]);
    for (const route of await socket.routeList({ family, table })) console.log(format(route));
  } else if (verb === 'add') await socket.routeAdd(parse(family, rest));
  else if (verb === 'del') await socket.routeDelete(parse(family, rest));
  else if (verb === 'monitor') {
    socket.watch((changes) => {
      for (const change of changes)
        if (change.kind === 'route')
          console.log(`${change.verb === 'delete' ? 'Deleted ' : ''}${format(change.route)}`);
    });
    setInterval(() => {}, 1e9); // a watch does not keep the process alive
  } else console.log(help);
} catch (error) {
  console.error(/** @type {Error} */ (error).message); // what was tried, what the kernel said, and what may help
  process.exitCode = 1;
}
