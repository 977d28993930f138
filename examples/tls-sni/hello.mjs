/** The first words of TLS, read without TLS: RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3. */

const HANDSHAKE = 22;
const CLIENT_HELLO = 1;
const SERVER_NAME = 0;
const HOST_NAME = 0;
const RECORD_HEADER = 5;
const MESSAGE_HEADER = 4;
/** The limit of a record. Real ones have 0.2 to 2 KiB, 4 with post-quantum keys. */
export const LARGEST_HELLO = 16384;

/**
 * What the first bytes of a connection say: `need` so many of them (they may come in several segments, and the message in
 * several records), or all that is asked for. Whatever we do not know (GREASE, extensions to come) is passed over.
 *
 * @param {Buffer} bytes
 * @returns {{ need: number } | { need?: undefined, serverName: string | undefined }}
 * @throws {Error} when it is no ClientHello, or a larger one than anybody sends
 */
export function readClientHello(bytes) {
  /** @type {Buffer[]} */
  const fragments = [];
  let collected = 0;
  for (let at = 0; ; ) {
    if (bytes.length > at && bytes[at] !== HANDSHAKE) throw new Error('not TLS');
    if (bytes.length < at + RECORD_HEADER) return { need: at + RECORD_HEADER };
    const length = bytes.readUInt16BE(at + 3);
    if (bytes[at + 1] !== 3 || length === 0) throw new Error('not TLS');
    at += RECORD_HEADER;
    fragments.push(bytes.subarray(at, at + length));
    collected += length;
    if (bytes.length >= at + Math.min(length, MESSAGE_HEADER) && collected >= MESSAGE_HEADER) {
      const message = Buffer.concat(fragments);
      if (message[0] !== CLIENT_HELLO) throw new Error('no ClientHello');
      const size = MESSAGE_HEADER + message.readUIntBE(1, 3);
      if (size > LARGEST_HELLO) throw new Error('too large a ClientHello');
      if (message.length >= size) return { serverName: serverName(message.subarray(MESSAGE_HEADER, size)) };
    }
    if (bytes.length < at + length) return { need: at + length };
    at += length;
    if (at > 2 * LARGEST_HELLO) throw new Error('too many records');
  }
}

/** @param {Buffer} body of a ClientHello */
function serverName(body) {
  const hello = new Reader(body);
  hello.take(2 + 32); // version, random
  hello.vector(1); // session id
  hello.vector(2); // cipher suites
  hello.vector(1); // compression methods
  if (hello.isEmpty) return undefined;
  const extensions = hello.vector(2);
  while (!extensions.isEmpty) {
    const type = extensions.number(2);
    const data = extensions.vector(2);
    if (type !== SERVER_NAME) continue;
    const names = data.vector(2);
    while (!names.isEmpty) {
      const isHost = names.number(1) === HOST_NAME;
      const name = names.vector(2).rest().toString('latin1');
      if (isHost) return name.toLowerCase();
    }
  }
  return undefined;
}

/** Numbers and vectors one after the other, as all of TLS is made; reading past the end throws. */
class Reader {
  #bytes;
  #at = 0;

  /** @param {Buffer} bytes */
  constructor(bytes) {
    this.#bytes = bytes;
  }

  get isEmpty() {
    return this.#at === this.#bytes.length;
  }

  /** @param {number} length */
  take(length) {
    if (this.#at + length > this.#bytes.length) throw new Error('a broken ClientHello');
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  /** @param {number} size in bytes */
  number(size) {
    return this.take(size).readUIntBE(0, size);
  }

  /** What has its length before it. @param {number} size of the length, in bytes */
  vector(size) {
    return new Reader(this.take(this.number(size)));
  }

  rest() {
    return this.take(this.#bytes.length - this.#at);
  }
}
