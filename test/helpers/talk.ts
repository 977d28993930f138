/**
 * Connections between the lab's hosts, spoken by the test itself: sockets are opened in a host's namespace, so one program
 * plays all parts. Servers here greet first (`<name> <the client's address and port, as seen>`), then echo.
 */
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { connectTransparent } from '../../src/index.js';
import { native } from '../../src/native.js';
import type { Host, Lab } from './lab.js';

export interface Greeter {
  readonly sockets: Set<Socket>;
  close(): Promise<void>;
}

/** An ordinary server: nothing about it is transparent. */
export async function greet(lab: Lab, host: Host, name: string, port: number, address = '::'): Promise<Greeter> {
  const fd = native.openListener({ address, port, backlog: 128, transparent: false, netns: lab.netns(host) });
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    greeting(name, socket);
  });
  await once(server.listen({ fd }), 'listening');
  server.unref(); // a test that has come to its end need not wait for it
  return {
    sockets,
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Sends the greeting, then echoes. */
export function greeting(name: string, socket: Socket): void {
  socket.on('error', () => socket.destroy());
  socket.write(`${name} ${(socket.remoteAddress ?? '').replace('::ffff:', '')} ${socket.remotePort}\n`);
  socket.pipe(socket);
}

export interface Dialled {
  readonly socket: Socket;
  /** First word of the greeting: who answered. */
  readonly who: string;
  /** Whom the answering server saw. */
  readonly sawAddress: string;
  readonly sawPort: number;
  readonly milliseconds: number;
  /** Sends a line and waits for it to come back. */
  echo(line: string): Promise<void>;
  hangUp(): Promise<void>;
}

export interface DialOptions {
  readonly localAddress?: string;
  readonly localPort?: number;
  readonly timeoutMs?: number;
}

/** Connects from a host and reads the greeting; rejects when it takes longer than 20 s. */
export async function dial(
  lab: Lab,
  host: Host,
  address: string,
  port: number,
  options: DialOptions = {},
): Promise<Dialled> {
  const started = performance.now();
  const timeoutMs = options.timeoutMs ?? 20_000;
  // Without a mark: it plays an ordinary program, also where this process has installed an interception.
  const socket = await connectTransparent({ address, port, netns: lab.netns(host), mark: 0, ...options, timeoutMs });
  socket.on('error', () => {});
  const line = lines(socket, timeoutMs);
  const [who = '', sawAddress = '', sawPort] = (await line()).split(' ');
  return {
    socket,
    who,
    sawAddress,
    sawPort: Number(sawPort),
    milliseconds: performance.now() - started,
    async echo(text) {
      socket.write(`${text}\n`);
      const answer = await line();
      if (answer !== text) throw new Error(`sent '${text}', got '${answer}'`);
    },
    async hangUp() {
      if (socket.destroyed) return;
      const closed = once(socket, 'close');
      socket.destroy();
      await closed;
    },
  };
}

/** Who answers there: the first word of the greeting, or the error's code. */
export async function ask(
  lab: Lab,
  host: Host,
  address: string,
  port: number,
  options: DialOptions = {},
): Promise<string> {
  try {
    const call = await dial(lab, host, address, port, options);
    await call.hangUp();
    return call.who;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

/** How often a host has had to repeat a SYN, which costs a second. */
export const synRetransmissions = (lab: Lab, host: Host): string =>
  lab.exec(host, 'nstat', '-asz', 'TcpExtTCPSynRetrans').replace(/^#.*\n/, '');

/** Reads a socket line by line. */
function lines(socket: Socket, timeoutMs: number): () => Promise<string> {
  let buffered = '';
  let ended: string | undefined;
  let wake = () => {};
  socket.on('data', (chunk) => {
    buffered += chunk;
    wake();
  });
  for (const event of ['end', 'close', 'error'] as const)
    socket.on(event, (error?: unknown) => {
      ended ??= (error as NodeJS.ErrnoException)?.code ?? `E_${event.toUpperCase()}`;
      wake();
    });
  return async () => {
    const late = setTimeout(() => {
      ended ??= 'E_SILENCE';
      wake();
    }, timeoutMs);
    try {
      for (;;) {
        const end = buffered.indexOf('\n');
        if (end >= 0) {
          const line = buffered.slice(0, end);
          buffered = buffered.slice(end + 1);
          return line;
        }
        if (ended) throw Object.assign(new Error(`no line came: ${ended}`), { code: ended });
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    } finally {
      clearTimeout(late);
    }
  };
}
