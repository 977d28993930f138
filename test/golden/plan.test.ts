/** Our plans: the text is what was captured, and our batch of the plan has the bytes that `nft -f` sends for that text. */
import { readFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';
import { difference, read, split } from './fixture.js';
import { plans, texts } from './plans.js';

const test = suite('golden plans');

for (const { name, text } of texts)
  test(`${name}: the text`, () => {
    assert.fixture(text, readFileSync(new URL(`nft/${name}.nft`, import.meta.url), 'utf8'));
  });

for (const { name, plan } of plans)
  test(`${name}: the bytes`, () => {
    const theirs = read(name).get(`nft -f test/golden/nft/${name}.nft`) ?? [];
    const ours = split(native.encodeBatch(plan.nftables));
    for (const [index, message] of ours.entries()) {
      const expected = theirs[index] ?? Buffer.alloc(0);
      if (!message.equals(expected)) assert.unreachable(`message ${index}\n${difference(message, expected)}`);
    }
    assert.is(ours.length, theirs.length);
  });

test.run();
