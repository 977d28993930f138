/**
 * Golden fixtures: the bytes that `ip` and `nft` send, as text files in fixtures/. A fixture is a header of comment lines
 * and then, for each command, a line `$ command` and one line of hex for each netlink message that it sent.
 * Written by capture.ts, read by the golden tests.
 */
import { readFileSync } from 'node:fs';

export const directory = new URL('fixtures/', import.meta.url);

export interface Sent {
  readonly command: string;
  readonly messages: readonly Buffer[];
}

export function format(header: readonly string[], all: readonly Sent[]): string {
  return [
    ...header.map((line) => `# ${line}`.trimEnd()),
    ...all.flatMap(({ command, messages }) => ['', `$ ${command}`, ...messages.map((m) => m.toString('hex'))]),
    '',
  ].join('\n');
}

export function read(name: string): Map<string, readonly Buffer[]> {
  const sent = new Map<string, Buffer[]>();
  let messages: Buffer[] = [];
  for (const line of readFileSync(new URL(`${name}.txt`, directory), 'utf8').split('\n')) {
    if (line.startsWith('$ ')) {
      messages = [];
      sent.set(line.slice(2), messages);
    } else if (line !== '' && !line.startsWith('#')) messages.push(Buffer.from(line, 'hex'));
  }
  return sent;
}

/** Takes the messages of a datagram apart. Numbers in netlink headers are in host order; the fixtures are little endian. */
export function split(datagram: Uint8Array): Buffer[] {
  const bytes = Buffer.from(datagram.buffer, datagram.byteOffset, datagram.length);
  const messages: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = bytes.readUInt32LE(at);
    messages.push(bytes.subarray(at, at + length));
    at += (length + 3) & ~3;
  }
  return messages;
}

/** nft leaves in the padding of what it asks for what was there before. Behind an nfgenmsg; nested attributes are marked so. */
export function withoutPadding(message: Uint8Array): Buffer {
  const copy = Buffer.from(message);
  const clear = (from: number, to: number) => {
    for (let at = from; at < to; ) {
      const [length, type] = [copy.readUInt16LE(at), copy.readUInt16LE(at + 2)];
      const next = at + ((length + 3) & ~3);
      if (type & 0x8000) clear(at + 4, at + length);
      copy.fill(0, at + length, next);
      at = next;
    }
  };
  clear(20, copy.length);
  return copy;
}

/**
 * The one thing that must differ, and is set to 0: the sequence number, which iproute2 takes from the clock. (nft counts
 * from 0 in each batch, as encodeBatch does; neither sends a port id, and nft sends no generation in its batches.)
 */
export function normalised(message: Uint8Array): Buffer {
  const copy = Buffer.from(message);
  copy.fill(0, 8, 12);
  return copy;
}

/** Four bytes a line, `!` where the two differ. */
export function difference(ours: Buffer, theirs: Buffer): string {
  const lines = ['     ours      theirs'];
  for (let at = 0; at < Math.max(ours.length, theirs.length); at += 4) {
    const [a, b] = [ours, theirs].map((bytes) =>
      bytes
        .subarray(at, at + 4)
        .toString('hex')
        .padEnd(8),
    );
    lines.push(`${String(at).padStart(4)} ${a}  ${b}${a === b ? '' : ' !'}`);
  }
  return lines.join('\n');
}
