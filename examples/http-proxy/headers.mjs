/** What a proxy does with headers, pure. As Node has them raw: names and values in turn, in the order and case they came. */
import { isIP } from 'node:net';

/** For one connection only (RFC 9110, section 7.6.1); Node makes those of the next one. */
const HOP_BY_HOP = ['connection', 'keep-alive', 'proxy-connection', 'te', 'transfer-encoding', 'upgrade'];
/** Never, whatever Connection says: a body without its length is the next request. */
const END_TO_END = ['host', 'content-length'];

/**
 * The headers that are meant for the other end.
 *
 * @param {{ rawHeaders: string[], headers: import('node:http').IncomingHttpHeaders }} message
 */
export function endToEnd({ rawHeaders, headers }) {
  const named = (headers.connection ?? '').toLowerCase().split(/[ \t]*,[ \t]*/);
  return without(rawHeaders, (name) => [...HOP_BY_HOP, ...named].includes(name) && !END_TO_END.includes(name));
}

/**
 * @param {string[]} headers
 * @param {readonly string[]} changes `Name: value` in the place of all of that name; `Name:` for none
 */
export function changed(headers, changes) {
  return changes.reduce((before, change) => {
    const [, name = change, value = ''] = change.match(/^([^:]+): *(.*)$/) ?? [];
    const others = without(before, (each) => each === name.toLowerCase());
    return value ? [...others, name, value] : others;
  }, headers);
}

/**
 * @param {string[]} headers
 * @param {(name: string) => boolean} isOut its name in lower case
 */
const without = (headers, isOut) =>
  headers.filter((_, index) => !isOut((headers[index - (index % 2)] ?? '').toLowerCase()));

/**
 * Why a request cannot be passed on, if so. What Node's parser refuses never comes here.
 *
 * The original destination decides where a request goes, never its Host header: else anybody could reach, through us, what
 * he cannot reach himself. A name is passed on as it is, for servers have many names; an address must be the one that was connected to.
 *
 * @param {Pick<import('node:http').IncomingMessage, 'rawHeaders' | 'headers' | 'url' | 'httpVersion'>} request
 * @param {{ address: string }} originalDestination
 * @returns {{ status: number, message: string } | undefined}
 */
export function problemWith({ rawHeaders, headers, url = '', httpVersion }, originalDestination) {
  if (!/^1\.[01]$/.test(httpVersion)) return { status: 400, message: `HTTP ${httpVersion}` };
  const hosts = rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === 'host').length;
  if (hosts > 1) return { status: 400, message: 'two Host headers' };
  if (!/^(\/|\*$|http:\/\/)/.test(url)) return { status: 400, message: 'no path, and no address' };
  const { host = '' } = headers;
  if (!/^([\w.-]*|\[[\da-f:.]+\])(:\d+)?$/i.test(host)) return { status: 400, message: 'no Host' };
  const name = host.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  if (isIP(name) && hostOf({ address: name }) !== hostOf(originalDestination))
    return { status: 421, message: `${name} is not ${originalDestination.address}` };
  return undefined;
}

/**
 * An address as it stands in a URL.
 *
 * @param {{ address: string }} endpoint
 */
export const hostOf = ({ address }) => new URL(`http://${isIP(address) === 6 ? `[${address}]` : address}`).host;
