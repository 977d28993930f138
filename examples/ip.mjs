/** What the examples ip-rule and ip-route have in common: the command line of `ip`. */
import { RouteSocket } from 'linux-tproxy/netlink';

/** @typedef {import('linux-tproxy/netlink').Family} Family */
/** @typedef {import('linux-tproxy/netlink').RouteChange} RouteChange */

/** @type {Record<string, number>} */
export const TABLES = { default: 253, main: 254, local: 255 };
/** @param {string} word */
export const tableOf = (word) => TABLES[word] ?? Number(word);

/** One address without its length. @param {string} prefix @param {Family} family */
export const short = (prefix, family) => prefix.replace(family === 'ipv4' ? /\/32$/ : /\/128$/, '');

/**
 * Reads what is behind the verb: words with a value each (`not` has none, by its function's having no argument) into `object`.
 *
 * @template {object} T
 * @param {string[]} words
 * @param {T} object
 * @param {Record<string, (word: string) => Partial<T>>} take
 * @returns {T}
 */
export function readWords(words, object, take) {
  for (let word = words.shift(); word !== undefined; word = words.shift()) {
    const read = take[word];
    const value = read?.length ? words.shift() : '';
    if (!read || value === undefined) throw new TypeError(`'${word}' cannot be understood; try help`);
    Object.assign(object, read(value));
  }
  return object;
}

/**
 * @param {object} command
 * @param {string} command.help
 * @param {(socket: RouteSocket, family: Family, words: string[]) => Promise<string[]>} command.list
 * @param {(socket: RouteSocket, family: Family, words: string[]) => Promise<void>} command.add
 * @param {(socket: RouteSocket, family: Family, words: string[]) => Promise<void>} command.del
 * @param {(change: RouteChange) => string | undefined} command.told what is printed of a change, if anything
 */
export async function run({ help, list, add, del, told }) {
  const words = process.argv.slice(2);
  const family = words[0] === '-6' ? 'ipv6' : 'ipv4';
  if (/^-[46]$/.test(words[0] ?? '')) words.shift();
  const [verb = 'list', ...rest] = words;
  const socket = new RouteSocket();
  try {
    if (verb === 'list') for (const line of await list(socket, family, rest)) console.log(line);
    else if (verb === 'add') await add(socket, family, rest);
    else if (verb === 'del') await del(socket, family, rest);
    else if (verb === 'monitor') {
      socket.watch((changes) => {
        for (const change of changes) {
          const text = told(change);
          if (text && change.kind !== 'lost') console.log(`${change.verb === 'delete' ? 'Deleted ' : ''}${text}`);
        }
      });
      setInterval(() => {}, 1e9); // a watch does not keep the process alive
    } else console.log(help);
  } catch (error) {
    console.error(/** @type {Error} */ (error).message); // what was tried, what the kernel said, and what may help
    process.exitCode = 1;
  }
}
