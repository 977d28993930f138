/**
 * One FTP session: the two control connections, the data connection that is expected, and those that run. Both sides speak
 * with each other's own addresses; what we change in their words is the port of a data connection, where it must be.
 */
import { isIP } from 'node:net';
import { connectTransparent, relay } from 'linux-tproxy';
import { addressOf, Dialogue } from '../dialogue.mjs';
import { listenOnce } from './listen.mjs';
import { formatEprt, formatPort, parseCommand, parseEprt, parsePassive, parsePort } from './protocol.mjs';

/** @typedef {import('node:net').Socket} Socket */

/** A transfer over which nothing went for so long is dead; servers give up earlier. */
const IDLE_MS = 3_600_000;

export class Session extends Dialogue {
  #clientAddress;
  #serverAddress;
  #options;
  #onlyEpsv = false;
  /** @type {{ close(): void } | undefined} */
  #listener;
  /** @type {Set<import('linux-tproxy').Relay>} */
  #transfers = new Set();

  /**
   * @param {import('linux-tproxy').TransparentSocket} client
   * @param {Socket} server
   * @param {{ passTls: boolean, dataTimeoutMs: number, log: (text: string) => void }} options
   */
  constructor(client, server, options) {
    super(client, server);
    this.#clientAddress = addressOf(client);
    this.#serverAddress = client.originalDestination.address;
    this.#options = options;
  }

  /**
   * Transfers that run at the end of the session may end by themselves.
   *
   * @override
   */
  async run() {
    await super.run().finally(() => this.#listener?.close());
  }

  /** @override */
  close() {
    super.close();
    this.#abort();
  }

  // ---- control ------------------------------------------------------------------------------------------------------------

  /**
   * @override
   * @param {string} line
   */
  command(line) {
    const command = parseCommand(line);
    if (!command) return this.refuse('500 That is no command.');
    const { verb, argument, text } = command;
    switch (verb) {
      case 'EPSV':
        this.#listener?.close();
        if (argument.toUpperCase() === 'ALL') this.#onlyEpsv = true;
        break;
      case 'PASV':
        this.#listener?.close();
        if (this.#onlyEpsv) return this.refuse('503 Only EPSV after EPSV ALL.');
        break;
      case 'PORT':
      case 'EPRT':
        this.#listener?.close();
        if (this.#onlyEpsv) return this.refuse('503 Only EPSV after EPSV ALL.');
        return this.#active(verb, argument);
      case 'LPRT': // RFC 1639, which EPRT and EPSV replaced
      case 'LPSV':
        return this.refuse(`502 ${verb} is not for this way: use EPRT or EPSV.`);
      case 'AUTH':
        if (this.#options.passTls) return this.forward(verb, text, { wait: true });
        return this.refuse('502 TLS is refused on this way: no data connection would be found.');
      case 'ABOR':
        // Node cannot send it as urgent, so that a busy server would see it too late: it sees its data connection go.
        this.#listener?.close();
        this.#abort();
        break;
    }
    return this.forward(verb, text);
  }

  /**
   * @override
   * @param {string} verb
   * @param {number} code
   * @param {string} text
   */
  reply(verb, code, text) {
    if ((verb === 'PASV' && code === 227) || (verb === 'EPSV' && code === 229)) return this.#passive(verb, text);
    if ((verb === 'PORT' || verb === 'EPRT') && code >= 300) this.#listener?.close();
    if (verb === 'AUTH' && code === 234) this.isOpaque = true;
    return text;
  }

  /**
   * @override
   * @param {string} answer
   */
  refuse(answer) {
    this.#log(answer);
    super.refuse(answer);
  }

  // ---- data ---------------------------------------------------------------------------------------------------------------

  /**
   * The server waits on a port: so do we, in its name, on the same one if it can be, and the reply needs no change then.
   *
   * @param {string} verb
   * @param {string} reply
   */
  async #passive(verb, reply) {
    const [client, server] = [this.#clientAddress, this.#serverAddress];
    const passive = parsePassive(reply);
    if (!passive) return '425 The server says not where.\r\n';
    const { address = server, port, moved } = passive;
    // It may stand behind a NAT of its own, or try to send the client to somebody else.
    if (address !== server) this.#log(`names ${address}: not believed`);
    /** @type {(at: number) => ReturnType<typeof listenOnce>} */
    const listen = (at) =>
      listenOnce({ address: server, port: at, from: client, timeoutMs: this.#options.dataTimeoutMs }, (socket) =>
        this.#transfer(verb, socket, { address: server, port, localAddress: client }, (other) => [socket, other]),
      );
    try {
      const listener = await listen(port).catch((error) => {
        if (error.code !== 'EADDRINUSE') throw error;
        return listen(0);
      });
      this.#listener = listener;
      return address === server && listener.port === port ? reply : moved(server, listener.port);
    } catch (error) {
      this.#log(String(error));
      return '425 No port for it.\r\n';
    }
  }

  /**
   * The client waits on a port: we wait on another one, in its name, and the server is told that. The same one would make
   * two connections of one pair of addresses and ports, which conntrack cannot tell apart.
   *
   * @param {'PORT' | 'EPRT'} verb
   * @param {string} argument
   */
  async #active(verb, argument) {
    const [client, server] = [this.#clientAddress, this.#serverAddress];
    const place = verb === 'PORT' ? parsePort(argument) : parseEprt(argument);
    if (!place) return this.refuse(`501 ${verb} of what?`);
    if (isIP(place.address) !== isIP(client)) return this.refuse(`522 Use (${isIP(client) === 4 ? 1 : 2}).`);
    // Else anybody could be sent anything from anywhere: RFC 2577, the bounce attack.
    if (place.address !== client || place.port < 1024)
      return this.refuse(`500 Illegal ${verb}: only to your own address, from port 1024 upwards.`);
    const at = { address: client, port: 0, from: server, timeoutMs: this.#options.dataTimeoutMs };
    try {
      const listener = await listenOnce(at, (socket) => {
        // The port of the server's own choice: 20, as a rule. Firewalls in front of clients look for it.
        const localPort = socket.remotePort ?? 20;
        const to = /** @type {const} */ ({ ...place, localAddress: server, localPort, sourcePort: 'prefer' });
        void this.#transfer(verb, socket, to, (other) => [other, socket]);
      });
      this.#listener = listener;
      await this.forward(verb, `${verb} ${(verb === 'PORT' ? formatPort : formatEprt)(client, listener.port)}\r\n`);
    } catch (error) {
      this.refuse(`425 No port for it: ${error}`);
    }
  }

  /**
   * One half of a data connection is there: makes the other, and hands both to the kernel.
   *
   * @param {string} verb
   * @param {Socket} half
   * @param {import('linux-tproxy').ConnectTransparentOptions} to
   * @param {(other: Socket) => [client: Socket, server: Socket]} order
   */
  async #transfer(verb, half, to, order) {
    half.on('error', () => {});
    try {
      const timeoutMs = this.#options.dataTimeoutMs;
      const other = await connectTransparent({ ...to, timeoutMs, allowHalfOpen: true });
      const transfer = relay(...order(other), { idleTimeoutMs: IDLE_MS });
      this.#transfers.add(transfer);
      const { bytesFromClient, bytesFromServer, reason } = await transfer.closed;
      this.#transfers.delete(transfer);
      this.#log(`${verb}: ${bytesFromClient} bytes up, ${bytesFromServer} bytes down, ${reason}`);
    } catch (error) {
      this.#log(`${verb}: ${error}`);
      // Not the end of a file, which FIN would mean. The server says 425 or 426 by itself.
      half.resetAndDestroy();
    }
  }

  #abort() {
    for (const transfer of this.#transfers) transfer.destroy();
  }

  /** @param {string} text */
  #log(text) {
    this.#options.log(`${this.#clientAddress} > ${this.#serverAddress}: ${text}`);
  }
}
