/** The words of FTP (RFC 959, RFC 2428), pure: text in, values out. Text is latin1, one character per byte. */
import { isIP, SocketAddress } from 'node:net';

/**
 * A control connection is a telnet connection: before ABOR come "interrupt process" and "data mark" (IAC IP IAC DM), and
 * everywhere else the like could hide a command from us that the server then sees. An escaped byte 255 (IAC IAC) stays.
 *
 * @param {string} line
 */
const withoutTelnet = (line) =>
  line.replace(/\xff([\xfb-\xfe].|.)/gs, (sequence) => (sequence === '\xff\xff' ? sequence : ''));

/**
 * A command in the one form in which every server reads the same: no blank before it, and no second end of line in it.
 *
 * @param {string} line
 * @returns {{ verb: string, argument: string, text: string } | undefined}
 */
export function parseCommand(line) {
  const text = withoutTelnet(line);
  const [, verb, argument = ''] = text.match(/^([A-Za-z]{3,8})(?: ([^\r\n\0]*))?\r?\n$/) ?? [];
  return verb ? { verb: verb.toUpperCase(), argument, text } : undefined;
}

/**
 * What PORT has: `10,77,1,2,200,10`.
 *
 * @param {string} argument
 * @returns {{ address: string, port: number } | undefined}
 */
export function parsePort(argument) {
  const numbers = /^\d{1,3}(,\d{1,3}){5}$/.test(argument.trim()) ? argument.split(',').map(Number) : [];
  const [a, b, c, d, high, low] = numbers;
  if (high === undefined || low === undefined || numbers.some((number) => number > 255)) return undefined;
  return { address: [a, b, c, d].join('.'), port: high * 256 + low };
}

/** @type {(address: string, port: number) => string} */
export const formatPort = (address, port) => [...address.split('.'), Math.floor(port / 256), port % 256].join(',');

/**
 * What EPRT has: `|1|10.77.1.2|51210|` or `|2|fd77:1::2|51210|`.
 *
 * @param {string} argument
 * @returns {{ address: string, port: number } | undefined}
 */
export function parseEprt(argument) {
  const [, , protocol, address = '', digits] = argument.trim().match(/^([!-~])([12])\1(\S+?)\1(\d{1,5})\1$/) ?? [];
  const family = isIP(address) === 4 ? 'ipv4' : 'ipv6';
  const port = Number(digits);
  if (!isIP(address) || protocol !== (family === 'ipv4' ? '1' : '2') || !(port <= 65535)) return undefined;
  return { address: new SocketAddress({ address, family }).address, port };
}

/** @type {(address: string, port: number) => string} */
export const formatEprt = (address, port) => `|${isIP(address) === 4 ? 1 : 2}|${address}|${port}|`;

/**
 * Where a server waits for the data connection, and its reply with another place in it: the six numbers of a 227 (the
 * parentheses around them are usual, not certain), or the port of a 229, which is on the server's own address.
 *
 * @param {string} reply
 * @returns {{ address?: string, port: number, moved(address: string, port: number): string } | undefined}
 */
export function parsePassive(reply) {
  const [, before = '', text = '', after = ''] = reply.match(/^(227.*?)(\d+(?:,\d+){5})(.*)$/s) ?? [];
  const endpoint = parsePort(text);
  if (endpoint) return { ...endpoint, moved: (address, port) => before + formatPort(address, port) + after };

  const [, start = '', , digits, end = ''] = reply.match(/^(229.*\(([!-~])\2\2)(\d{1,5})(\2\).*)$/s) ?? [];
  const port = Number(digits);
  if (port > 0 && port <= 65535) return { port, moved: (_address, other) => start + other + end };
  return undefined;
}
