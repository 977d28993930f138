/** Our plans: the text is what was captured, and our batch of the plan has the bytes that `nft -f` sends for that text. */
import { readFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';
import type { NftOperation } from '../../src/netlink/types.js';
import { difference, normalised, read, split } from './fixture.js';
import { iptablesTexts, plans, texts } from './plans.js';

const test = suite('golden plans');

for (const { name, text } of texts)
  test(`${name}: the text`, () => {
    assert.fixture(text, readFileSync(new URL(`nft/${name}.nft`, import.meta.url), 'utf8'));
  });

/** A set that has a name we call by it; nft says its number, too. */
function byNumber(operations: readonly NftOperation[]): NftOperation[] {
  const sets = operations.flatMap(({ object }) => (object.kind === 'set' ? [object] : []));
  const numbered = <T extends { set: string; setId?: number }>(object: T): T => {
    const setId = object.setId ?? sets.find(({ name }) => name === object.set)?.id;
    return { ...object, ...(setId !== undefined && { setId }) };
  };
  return operations.map((operation): NftOperation => {
    const { verb, object } = operation;
    if (verb === 'add' && object.kind === 'elements') return { verb, object: numbered(object) };
    if (verb !== 'add' || object.kind !== 'rule') return operation;
    const expressions = object.expressions.map((each) =>
      each.kind === 'lookup' || each.kind === 'dynset' ? numbered(each) : each,
    );
    return { verb, object: { ...object, expressions } };
  });
}

for (const { name, plan } of plans)
  test(`${name}: the bytes`, () => {
    const theirs = read(name).get(`nft -f test/golden/nft/${name}.nft`) ?? [];
    const ours = split(native.encodeBatch(byNumber(plan.nftables)));
    for (const [index, message] of ours.entries()) {
      const expected = theirs[index] ?? Buffer.alloc(0);
      if (!message.equals(expected)) assert.unreachable(`message ${index}\n${difference(message, expected)}`);
    }
    assert.is(ours.length, theirs.length);
  });

// ---- iptables -----------------------------------------------------------------------------------------------------------

const NFT_MSG_NEWCHAIN = 0xa03;
const NFT_MSG_NEWRULE = 0xa06;
const typeOf = (message: Buffer) => message.readUInt16LE(4);

for (const { name, plan, family, command, text } of iptablesTexts) {
  test(`${name}: the text`, () => {
    assert.fixture(text, readFileSync(new URL(`iptables/${name}.txt`, import.meta.url), 'utf8'));
  });

  const theirs = read(name).get(command) ?? [];
  const ours = split(native.encodeBatch(plan.nftables.filter(({ object }) => object.family === family)));

  test(`${name}: the bytes of every rule`, () => {
    const rules = (messages: readonly Buffer[]) =>
      messages.filter((each) => typeOf(each) === NFT_MSG_NEWRULE).map(normalised);
    // Read and written anew: it says of each counter that it begins with 0, and of no bitwise expression that it is a
    // boolean one, where nft and we do the reverse and the kernel wants neither.
    const expected = rules(split(native.encodeBatch(rules(theirs).map((each) => native.decodeNftables(each)))));
    rules(ours).forEach((rule, index) => {
      const other = expected[index] ?? Buffer.alloc(0);
      if (!rule.equals(other)) assert.unreachable(`rule ${index}\n${difference(rule, other)}`);
    });
    assert.is(rules(ours).length, rules(theirs).length);
  });

  // iptables names its table again and again in between, and orders a chain's attributes otherwise.
  test(`${name}: the chains`, () => {
    const chains = (messages: readonly Buffer[]) =>
      messages
        .filter((each) => typeOf(each) === NFT_MSG_NEWCHAIN)
        .map((each) => {
          const { userdata: _, ...chain } = native.decodeNftables(each).object as { name: string; userdata?: unknown };
          return chain;
        })
        .sort((one, other) => (one.name < other.name ? -1 : 1));
    assert.equal(chains(ours), chains(theirs));
  });
}

test.run();
