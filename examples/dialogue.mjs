/** A dialogue of commands and replies, line by line, as FTP and SMTP have it, with somebody in the middle who may refuse. */
import { once } from 'node:events';
import { relay } from 'linux-tproxy';

/** @typedef {import('node:net').Socket} Socket */

/** Longer lines than any path or address needs are an attack, and so are longer replies than any directory needs. */
const LONGEST_LINE = 65_536;
const LONGEST_REPLY = 16 << 20;

/**
 * The peer's address as everybody writes it: IPv4 through a dual-stack socket shows as `::ffff:10.0.0.1`.
 *
 * @param {Socket} socket
 */
export const addressOf = (socket) => (socket.remoteAddress ?? '').replace('::ffff:', '');

/** Text is latin1 here, one character per byte: what is not understood passes as it came. */
export class Dialogue {
  client;
  server;
  /** To be set in `reply`: after that reply we look no more (TLS begins), and the kernel carries both connections on. */
  isOpaque = false;
  /** @type {import('linux-tproxy').Relay | undefined} */
  #relay;

  /**
   * Commands whose last reply is still to come, in order. One that we refuse ourselves waits here for its turn, with its
   * answer: commands may be sent without waiting for replies.
   *
   * @type {{ verb: string, answer?: string, settled?: () => void }[]}
   */
  #pending = [{ verb: 'greeting' }];

  /**
   * @param {Socket} client Both with allowHalfOpen: who has said all may still listen.
   * @param {Socket} server
   */
  constructor(client, server) {
    this.client = client;
    this.server = server;
    for (const socket of [client, server]) socket.on('error', () => {}); // whoever reads is told
  }

  /**
   * A line of the client's; to be passed on by `forward`, or not by `refuse`.
   *
   * @param {string} _line with its end
   * @returns {Promise<void> | void}
   */
  command(_line) {
    throw new Error('not said');
  }

  /**
   * A whole reply, perhaps of several lines.
   *
   * @param {string} _verb of the command that it answers; that of the first one is `greeting`
   * @param {number} _code
   * @param {string} text
   * @returns {Promise<string> | string} What the client gets.
   */
  reply(_verb, _code, text) {
    return text;
  }

  /** Until the server has ended; rejects when either connection fails. */
  async run() {
    // A client that has gone is an end for the server, too.
    this.#readCommands().catch((error) => this.server.destroy(error));
    try {
      await this.#readReplies();
      await this.#relay?.closed;
      // What a client still says to a server that has gone is of no use to anybody.
      this.client.destroySoon();
    } catch (error) {
      this.client.destroy();
      this.server.destroy();
      throw error;
    }
  }

  /** Ends it now. */
  close() {
    this.client.destroy();
    this.server.destroy();
    this.#relay?.destroy();
  }

  /**
   * @param {string} verb by which `reply` knows it again
   * @param {string} text
   * @param {{ wait?: boolean }} [options] wait: until it has its reply, for what comes next may be no command
   */
  async forward(verb, text, { wait = false } = {}) {
    /** @type {Promise<void> | undefined} */
    let replied;
    if (wait) replied = new Promise((settled) => this.#pending.push({ verb, settled }));
    else this.#pending.push({ verb });
    await send(this.server, text);
    await replied;
  }

  /**
   * What is no command, and has no reply.
   *
   * @param {string} text
   */
  pass(text) {
    return send(this.server, text);
  }

  /**
   * The server never hears of it.
   *
   * @param {string} answer
   */
  refuse(answer) {
    this.#pending.push({ verb: 'refused', answer });
    this.#answer();
  }

  /** Our own answers, when all that was asked before has its own. */
  #answer() {
    while (this.#pending[0]?.answer) this.client.write(`${this.#pending.shift()?.answer}\r\n`, 'latin1');
  }

  async #readCommands() {
    for await (const line of lines(this.client)) {
      await this.command(line);
      if (this.isOpaque) return;
    }
    this.server.end();
  }

  async #readReplies() {
    let text = '';
    /** The code of a reply of several lines, until its last one. */
    let several;
    for await (const line of lines(this.server)) {
      text += line;
      if (text.length > LONGEST_REPLY) throw new Error('A reply without end');
      const [, code, dash] = line.match(/^([1-5]\d\d)(-?)/) ?? [];
      several ??= dash && code;
      if (several && (several !== code || dash)) continue;
      if (code) await this.#reply(Number(code), text);
      else await send(this.client, text);
      if (this.isOpaque) return;
      several = undefined;
      text = '';
    }
  }

  /**
   * @param {number} code
   * @param {string} text
   */
  async #reply(code, text) {
    if (code < 200) return send(this.client, text);
    const { verb = '', settled } = this.#pending[0] ?? {};
    await send(this.client, await this.reply(verb, code, text));
    if (this.isOpaque) this.#relay = relay(this.client, this.server);
    this.#pending.shift();
    settled?.();
    this.#answer();
  }
}

/**
 * The lines of a connection, each with its end. The socket stays open when the loop over them is left.
 *
 * @param {Socket} socket
 */
async function* lines(socket) {
  let rest = '';
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
    rest += chunk.toString('latin1');
    let start = 0;
    for (let end = rest.indexOf('\n'); end >= 0; end = rest.indexOf('\n', start)) {
      yield rest.slice(start, end + 1);
      start = end + 1;
    }
    rest = rest.slice(start);
    if (rest.length > LONGEST_LINE) throw new Error(`A line of more than ${LONGEST_LINE} bytes`);
  }
}

/**
 * Resolves when there is room for more, or never will be.
 *
 * @param {Socket} socket
 * @param {string} text
 * @returns {Promise<void>}
 */
async function send(socket, text) {
  if (socket.write(text, 'latin1') || socket.destroyed) return;
  const done = new AbortController();
  const { signal } = done;
  await Promise.race([once(socket, 'drain', { signal }), once(socket, 'close', { signal })]).finally(() =>
    done.abort(),
  );
}
