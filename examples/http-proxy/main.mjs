/**
 * A transparent HTTP/1.1 proxy. Clients ask servers as they always did, and the server's log has the client's address:
 * `npm start -- --help`.
 */
import { Agent, createServer, request as httpRequest } from 'node:http';
import { parseArgs } from 'node:util';
import { connectTransparent, createTransparentServer, relay } from 'linux-tproxy';
import { serve } from '../serve.mjs';
import { changed, endToEnd, hostOf, problemWith } from './headers.mjs';

/**
 * @typedef {import('node:http').IncomingMessage} IncomingMessage
 * @typedef {import('node:http').ServerResponse} ServerResponse
 * @typedef {import('linux-tproxy').TransparentSocket} TransparentSocket
 */

const help = `usage: npm start -- --port PORT [--interface IF]... [--request-header 'NAME: VALUE']... [--response-header 'NAME: VALUE']...

  --port PORT        of this host, to which the connections come (by rules that live as long as the program)
  --interface IF     take only what comes in here; default everywhere
  --request-header   sent to the server in the place of the client's header of that name; without a value: none is
  --response-header  the same for what the client gets
`;
const CONNECT_MS = 10_000;
/** For what is open when we are told to end. */
const GRACE_MS = 10_000;

const { values: options } = parseArgs({
  options: {
    port: { type: 'string' },
    interface: { type: 'string', multiple: true },
    'request-header': { type: 'string', multiple: true, default: [] },
    'response-header': { type: 'string', multiple: true, default: [] },
    help: { type: 'boolean', short: 'h', default: false },
  },
});
if (options.help || !options.port) {
  console.log(help);
  process.exit(options.help ? 0 : 2);
}
const { 'request-header': requestHeaders = [], 'response-header': responseHeaders = [] } = options;

// ---- connections --------------------------------------------------------------------------------------------------------

/**
 * Each client connection has one of its own to the server it meant, from the client's address. Who logs in by the connection
 * (NTLM), or is limited by it, finds it as it was.
 *
 * @type {WeakMap<import('node:stream').Duplex, Agent>}
 */
const upstreams = new WeakMap();

class Upstream extends Agent {
  #connection;

  /** @param {import('node:net').Socket | Error} connection The one there is, or why there is none. */
  constructor(connection) {
    super({ keepAlive: true, maxSockets: 1 });
    this.#connection = connection;
  }

  /**
   * @override
   * @type {Agent['createConnection']}
   */
  createConnection(_options, done = () => {}) {
    const connection = this.#connection;
    if (!(connection instanceof Error)) return connection;
    process.nextTick(done, connection);
    return undefined;
  }
}

const proxy = createTransparentServer(
  { intercept: { tcp: [80], ...(options.interface && { interfaces: options.interface }) }, noDelay: true },
  async (client) => {
    client.on('error', () => {});
    const { address, port } = client.originalDestination;
    const localAddress = (client.remoteAddress ?? '').replace('::ffff:', '');
    const server = await connectTransparent({ address, port, localAddress, timeoutMs: CONNECT_MS }).catch(
      (/** @type {Error} */ error) => error,
    );
    upstreams.set(client, new Upstream(server));
    if (!(server instanceof Error)) {
      client.once('close', () => server.destroy());
      // Where the server hangs up between two requests, so do we: the client asks again, as it would without us.
      server.on('error', () => {}).once('close', () => client.end());
    }
    http.emit('connection', client);
  },
);

// ---- requests -----------------------------------------------------------------------------------------------------------

// Node's parser refuses what is no HTTP/1.1 by the letter (`clientError`): a broken line, two lengths, no Host.
const http = createServer({ insecureHTTPParser: false, requireHostHeader: true, keepAliveTimeout: 0 });
http.on('request', carry);
http.on('checkContinue', carry); // the server says whether to continue
http.on('upgrade', upgrade);
http.on('connect', (request, socket) => refuse(socket, 405, `CONNECT ${request.url}`));
http.on('clientError', (error, socket) => refuse(socket, 400, error.message));

/**
 * @param {IncomingMessage} request
 * @param {ServerResponse} response
 */
function carry(request, response) {
  const problem = problemOf(request);
  if (problem) {
    answer(request, response, problem.status, problem.message);
    return;
  }
  const toServer = send(request);
  toServer.on('continue', () => response.writeContinue());
  toServer.on('response', (fromServer) => {
    const { statusCode = 502, statusMessage = '' } = fromServer;
    log(request, String(statusCode));
    const isLast = !proxy.listening || /\bclose\b/i.test(fromServer.headers.connection ?? '');
    const close = isLast ? ['Connection', 'close'] : [];
    response.writeHead(statusCode, statusMessage, [...changed(endToEnd(fromServer), responseHeaders), ...close]);
    // A body that broke off must not look like one that ended.
    fromServer.on('error', () => request.socket.destroy()).pipe(response);
  });
  toServer.on('error', (error) => {
    if (response.headersSent) request.socket.destroy();
    else
      answer(
        request,
        response,
        /** @type {NodeJS.ErrnoException} */ (error).code === 'ETIMEDOUT' ? 504 : 502,
        error.message,
      );
  });
  response.on('close', () => toServer.destroy());
  request.pipe(toServer);
}

/**
 * WebSocket and the like: the request and its answer are HTTP, and what comes then is the kernel's.
 *
 * @param {IncomingMessage} request
 * @param {import('node:stream').Duplex} socket
 * @param {Buffer} head
 */
function upgrade(request, socket, head) {
  const client = /** @type {TransparentSocket} */ (socket);
  const problem = problemOf(request);
  if (problem) {
    refuse(client, problem.status, problem.message);
    return;
  }
  client.on('error', () => client.destroy());
  const toServer = send(request, ['Connection', 'Upgrade', 'Upgrade', request.headers.upgrade ?? '']);
  toServer.on('upgrade', (fromServer, server, serverHead) => {
    log(request, '101, relayed');
    client.write(headOf(fromServer, ['Connection', 'Upgrade', 'Upgrade', fromServer.headers.upgrade ?? '']), 'latin1');
    client.unshift(head);
    server.unshift(serverHead);
    relay(client, /** @type {import('node:net').Socket} */ (server));
  });
  toServer.on('response', (fromServer) => {
    log(request, `${fromServer.statusCode}, not upgraded`);
    client.write(headOf(fromServer, ['Connection', 'close']), 'latin1');
    fromServer.on('error', () => client.destroy()).pipe(client);
  });
  toServer.on('error', (error) => refuse(client, 502, error.message));
  toServer.end();
}

/**
 * The request again, on the client's own connection to the server.
 *
 * @param {IncomingMessage} request
 * @param {string[]} more headers
 */
function send(request, more = []) {
  const { method, url } = request;
  const socket = /** @type {TransparentSocket} */ (request.socket);
  const headers = [...changed(endToEnd(request), requestHeaders), ...more];
  // Node would do so for a POST, and send the body of a GET as it is: as the next request.
  if (request.headers['transfer-encoding'] !== undefined) headers.push('Transfer-Encoding', 'chunked');
  if (request.headers.host === undefined) headers.push('Host', hostOf(socket.originalDestination)); // HTTP/1.0
  return httpRequest({ method, path: url, headers, agent: upstreams.get(socket), setHost: false });
}

/** @param {IncomingMessage} request */
const problemOf = (request) =>
  problemWith(request, /** @type {TransparentSocket} */ (request.socket).originalDestination);

// ---- answers of our own -------------------------------------------------------------------------------------------------

/**
 * @param {IncomingMessage} request
 * @param {ServerResponse} response
 * @param {number} status
 * @param {string} message
 */
function answer(request, response, status, message) {
  log(request, `${status}: ${message}`);
  response.writeHead(status, { 'Content-Type': 'text/plain', Connection: 'close' }).end(`${message}\n`);
}

/**
 * @param {import('node:stream').Duplex} socket
 * @param {number} status
 * @param {string} message
 */
function refuse(socket, status, message) {
  console.log(`${status}: ${message}`);
  if (socket.writable) socket.end(`HTTP/1.1 ${status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
}

/**
 * A response's first lines, as they go over the wire.
 *
 * @param {IncomingMessage} response
 * @param {string[]} more headers
 */
function headOf(response, more) {
  const headers = [...changed(endToEnd(response), responseHeaders), ...more];
  const lines = headers.flatMap((text, index) => (index % 2 ? [] : [`${text}: ${headers[index + 1]}\r\n`]));
  return `HTTP/1.1 ${response.statusCode} ${response.statusMessage}\r\n${lines.join('')}\r\n`;
}

/**
 * @param {IncomingMessage} request
 * @param {string} outcome
 */
function log({ socket, method, url }, outcome) {
  const { originalDestination: to } = /** @type {TransparentSocket} */ (socket);
  console.log(`${(socket.remoteAddress ?? '').replace('::ffff:', '')} > ${to.address}: ${method} ${url} ${outcome}`);
}

// From here on Node's server has an eye on its connections: headersTimeout, requestTimeout, closeIdleConnections().
proxy.on('listening', () => http.emit('listening'));
serve(proxy, options.port, () => {
  http.closeIdleConnections();
  setTimeout(() => process.exit(), GRACE_MS).unref(); // or with the process
});
