/** The rule set as a whole: the bytes of our batch are those that `nft -f` sends for the same text, message by message. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';
import { type Options, ruleset } from '../helpers/ruleset.js';
import { difference, read, split } from './fixture.js';

const test = suite('golden rule set');

const variants: Record<string, Options> = {
  intercept: {},
  'own-host': { ownHost: true },
  everything: { ownHost: true, closed: true, zones: true },
};

for (const [name, options] of Object.entries(variants)) {
  const theirs = read(name).get(`nft -f test/golden/nft/${name}.nft`) ?? [];
  const { operations } = ruleset(options);

  test(`${name}: encodes as nft does`, () => {
    const ours = split(native.encodeBatch(operations));
    for (const [i, message] of ours.entries()) {
      const expected = theirs[i] ?? Buffer.alloc(0);
      const what = JSON.stringify(operations[i - 1], (_, v) => (typeof v === 'bigint' ? `${v}n` : v));
      if (!message.equals(expected)) assert.unreachable(`message ${i} ${what}\n${difference(message, expected)}`);
    }
    assert.is(ours.length, theirs.length);
  });

  test(`${name}: decodes what nft sends`, () => {
    assert.is(theirs.length, operations.length + 2);
    for (const [i, operation] of operations.entries())
      assert.equal(native.decodeNftables(theirs[i + 1] ?? Buffer.alloc(0)), operation);
  });
}

test.run();
