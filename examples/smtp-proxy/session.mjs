/** One SMTP session (RFC 5321), its commands perhaps pipelined (RFC 2920): what the policy forbids never reaches the server. */
import { Dialogue } from '../dialogue.mjs';

/**
 * @typedef {object} Policy
 * @property {readonly string[]} deny Recipients: `a@example.org`, `example.org`, `*.example.org`.
 * @property {string} tls hide: clients are told of no STARTTLS. require: no mail without. pass: as they like.
 */

/** What would bring commands or a message that cannot be followed here (RFC 3030). */
const HIDDEN = ['CHUNKING', 'BINARYMIME'];

export class Session extends Dialogue {
  #policy;
  #log;
  /**
   * What the next line is, if no command: a line of the message, the client's part of AUTH, or nothing we can follow.
   *
   * @type {'command' | 'message' | 'AUTH' | 'nothing'}
   */
  #expected = 'command';

  /**
   * @param {import('node:net').Socket} client
   * @param {import('node:net').Socket} server
   * @param {{ policy: Policy, log: (text: string) => void }} options
   */
  constructor(client, server, { policy, log }) {
    super(client, server);
    this.#policy = policy;
    this.#log = log;
  }

  /**
   * @override
   * @param {string} line
   * @returns {Promise<void> | void}
   */
  command(line) {
    if (this.#expected === 'nothing') return;
    if (this.#expected === 'message') return this.#message(line);
    if (this.#expected === 'AUTH') return this.forward('AUTH', line, { wait: true });
    const [, word = '', argument = ''] = line.match(/^([A-Za-z]{4,8})(?: ([^\r\n\0]*))?\r\n$/) ?? [];
    const verb = word.toUpperCase();
    switch (verb) {
      case '':
        return this.refuse('500 5.5.2 That is no command.');
      case 'MAIL':
        if (this.#policy.tls === 'require') return this.refuse('530 5.7.0 Must issue a STARTTLS command first.');
        break;
      case 'RCPT': {
        const recipient = argument.match(/^TO: *<(?:@[^:>]*:)?([^<>]*)>/i)?.[1];
        if (recipient === undefined) return this.refuse('501 5.1.3 Whose address is that?');
        if (isDenied(recipient, this.#policy.deny)) return this.refuse(`550 5.7.1 <${recipient}>: not on this way.`);
        break;
      }
      case 'STARTTLS':
        if (this.#policy.tls === 'hide') return this.refuse('502 5.5.1 No TLS on this way.');
        return this.forward(verb, line, { wait: true });
      case 'BDAT':
        return this.#breakOff('502 5.5.1 Nobody offered CHUNKING.');
      case 'AUTH':
      case 'DATA':
        return this.forward(verb, line, { wait: true });
    }
    return this.forward(verb, line);
  }

  /**
   * @override
   * @param {string} verb
   * @param {number} code
   * @param {string} text
   */
  reply(verb, code, text) {
    if (verb === 'DATA' && code === 354) this.#expected = 'message';
    if (verb === 'AUTH') this.#expected = code === 334 ? 'AUTH' : 'command';
    if (verb === 'STARTTLS' && code === 220) {
      this.#log('STARTTLS: relayed unseen from here on');
      this.isOpaque = true;
    }
    return verb === 'EHLO' && code === 250 ? this.#offer(text) : text;
  }

  /**
   * @override
   * @param {string} answer
   */
  refuse(answer) {
    this.#log(answer);
    super.refuse(answer);
  }

  /**
   * The end of a message is one line, and where servers disagree which, one message can hide another from us: so no line
   * may end in any way but CR LF, nor hold half of it.
   *
   * @param {string} line
   */
  #message(line) {
    if (line.indexOf('\r') !== line.length - 2) return this.#breakOff('550 5.5.2 Lines end in CR LF.');
    if (line === '.\r\n') {
      this.#expected = 'command';
      return this.forward('message', line);
    }
    return this.pass(line);
  }

  /** @param {string} offer a reply to EHLO, a line for each extension */
  #offer(offer) {
    const hidden = this.#policy.tls === 'hide' ? [...HIDDEN, 'STARTTLS'] : HIDDEN;
    const [greeting = '', ...extensions] = offer.match(/[^\n]*\n/g) ?? [];
    const shown = extensions.filter(
      (line) => !hidden.includes(line.slice(4).trim().split(' ')[0]?.toUpperCase() ?? ''),
    );
    return [greeting, ...shown].map((line, index) => `250${index < shown.length ? '-' : ' '}${line.slice(4)}`).join('');
  }

  /**
   * Where we cannot follow any more: a server drops a message without an end.
   *
   * @param {string} answer
   */
  #breakOff(answer) {
    this.#expected = 'nothing';
    this.refuse(answer);
    this.client.end();
    this.server.end();
  }
}

/** @type {(recipient: string, deny: readonly string[]) => boolean} */
function isDenied(recipient, deny) {
  const address = recipient.toLowerCase();
  const domain = address.slice(address.lastIndexOf('@') + 1).replace(/\.$/, '');
  return deny.some((each) => {
    const denied = each.toLowerCase();
    if (denied.includes('@')) return address === denied;
    return denied.startsWith('*.') ? domain.endsWith(denied.slice(1)) : domain === denied;
  });
}
