/**
 * Deterministic bytes for transfers: fast to make, and different at every position, so that the hash of a stream notices
 * whatever is lost, doubled, changed or out of order.
 */
import { createHash } from 'node:crypto';

const blockLength = 1 << 20;
const stampEvery = 1 << 12;

/** 1 MiB of noise (xorshift32); every 4 KiB of it begins with its place in the stream. */
const block = Buffer.alloc(blockLength);
for (let word = 2463534242, at = 0; at < blockLength; at += 4) {
  word ^= word << 13;
  word ^= word >>> 17;
  word ^= word << 5;
  block.writeInt32LE(word, at);
}

/**
 * The first `length` bytes of the stream, in chunks of at most 1 MiB.
 * @param {number} length
 * @returns {Generator<Buffer>}
 */
export function* bytes(length) {
  for (let start = 0; start < length; start += blockLength) {
    const chunk = Buffer.from(block.subarray(0, Math.min(blockLength, length - start)));
    for (let at = 0; at + 8 <= chunk.length; at += stampEvery) chunk.writeDoubleLE(start + at, at);
    yield chunk;
  }
}

/**
 * The SHA-256 of the first `length` bytes of the stream.
 * @param {number} length
 */
export function digest(length) {
  const hash = createHash('sha256');
  for (const chunk of bytes(length)) hash.update(chunk);
  return hash.digest('hex');
}
