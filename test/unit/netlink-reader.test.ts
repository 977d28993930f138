/**
 * Bytes from outside: whatever is done to a message, reading it gives a value or an error. (That memory is not read past
 * its end is seen by test/fuzz under sanitizers; here it is seen that nothing escapes as anything but an error.)
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { NetlinkError } from '../../src/errors.js';
import { native } from '../../src/native.js';
import { read } from '../golden/fixture.js';

const test = suite('netlink reader');

const messages = (...names: readonly string[]): Buffer[] =>
  names.flatMap((name) => [...read(name).values()].flat()).filter((message) => message.length > 20);
const kinds = {
  rules: { samples: messages('rules'), decode: native.decodeRule },
  routes: { samples: messages('routes'), decode: native.decodeRoute },
  nftables: { samples: messages('expressions', 'sets', 'operations', 'intercept'), decode: native.decodeNftables },
} as const;

/** The same numbers in every run (mulberry32). */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

function outcome(decode: (message: Uint8Array) => unknown, message: Uint8Array): 'value' | 'error' {
  try {
    decode(message);
    return 'value';
  } catch (error) {
    if (!(error instanceof NetlinkError) || error.code !== 'EBADMSG')
      throw new Error(`${Buffer.from(message).toString('hex')}`, { cause: error });
    return 'error';
  }
}

for (const [kind, { samples, decode }] of Object.entries(kinds)) {
  test(`${kind}: whole messages are values`, () => {
    assert.ok(samples.length > 10);
    for (const sample of samples) assert.is(outcome(decode, sample), 'value');
  });

  test(`${kind}: a message cut off anywhere is an error`, () => {
    for (const sample of samples)
      for (let length = 0; length < sample.length; ++length)
        assert.is(outcome(decode, sample.subarray(0, length)), 'error');
  });

  test(`${kind}: one that says it is shorter than it is`, () => {
    for (const sample of samples)
      for (let length = 0; length < sample.length; ++length) {
        const cut = Buffer.from(sample.subarray(0, length));
        if (length >= 4) cut.writeUInt32LE(length, 0);
        outcome(decode, cut);
      }
  });

  test(`${kind}: any bytes changed`, () => {
    const below = random(84);
    const seen = { value: 0, error: 0 };
    for (let i = 0; i < 5000; ++i) {
      const message = Buffer.from(samples[below(samples.length)] ?? []);
      for (let changes = 1 + below(4); changes > 0; --changes) message[16 + below(message.length - 16)] = below(256);
      ++seen[outcome(decode, message)];
    }
    assert.ok(seen.value > 250 && seen.error > 250, JSON.stringify(seen));
  });
}

test('an attribute nobody knows is passed over', () => {
  const [rule] = kinds.rules.samples;
  assert.ok(rule);
  const longer = Buffer.concat([rule, Buffer.from('0500ff3f07000000', 'hex')]);
  longer.writeUInt32LE(longer.length, 0);
  assert.equal(native.decodeRule(longer), native.decodeRule(rule));
});

test('expressions within expressions do not exhaust the stack', () => {
  // NFTA_RULE_EXPRESSIONS holds lists that hold lists: only the first level is looked into.
  let inner = Buffer.alloc(0);
  for (let depth = 0; depth < 5000; ++depth) {
    const header = Buffer.alloc(4);
    header.writeUInt16LE(inner.length + 4, 0);
    header.writeUInt16LE(0x8004, 2);
    inner = Buffer.concat([header, inner]);
  }
  const start = Buffer.from('00000000060a000000000000000000000100000006000100780000000600020063000000', 'hex');
  const message = Buffer.concat([start, inner]);
  message.writeUInt32LE(message.length, 0);
  assert.is(outcome(native.decodeNftables, message), 'error');
});

test.run();
