/** Values on their way to native code: what is packed in TypeScript is what C++ reads. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';
import type { NftElement, NftOperation, Rule } from '../../src/netlink/types.js';
import { pack, packAhead } from '../../src/pack.js';

const test = suite('pack');

const rule: Rule = { family: 'ipv4', action: 'lookup', table: 100, priority: 7 };
const roundTrip = (object: NftOperation['object']) => {
  const batch = native.encodeBatch([{ verb: 'add', object }]);
  const begin = batch.readUInt32LE(0);
  return native.decodeNftables(batch.subarray(begin, begin + batch.readUInt32LE(begin))).object;
};

test('every kind of value arrives', () => {
  const chain = { kind: 'chain', family: 'inet', table: 'ä€𝄞', name: 'a'.repeat(200) } as const;
  const based = { ...chain, type: 'filter', hook: 'prerouting', priority: -2147483648, policy: 'accept' } as const;
  assert.equal(roundTrip(based), based);
  const set = { kind: 'set', family: 'inet', table: 't', name: 's', keyType: 0xffffffff, keyLength: 4, id: 1 } as const;
  const timed = { ...set, flags: ['interval', 'timeout'], timeoutMs: 2n ** 64n - 1n, userdata: Uint8Array.of(0, 255) };
  assert.equal(roundTrip(timed as NftOperation['object']), timed);
  const lookup = { kind: 'lookup', set: 's', sreg: 1, invert: true } as const;
  const verdict = { kind: 'verdict', verdict: 'accept' } as const;
  const many = { kind: 'rule', family: 'ip', table: 't', chain: 'c', expressions: [lookup, verdict] } as const;
  assert.equal(roundTrip(many), many);
});

test('what is packed ahead is what it was then', () => {
  const list = ['a', 'b'];
  const expected = pack(list).slice();
  assert.is(packAhead(list), list);
  list.pop();
  pack('in between');
  assert.equal(pack(list), expected);
});

test('what was packed ahead may be part of something else', () => {
  const part = { expressions: ['a', { b: 1 }, 2n] };
  const expected = pack({ before: 1, part, behind: [part] }).slice();
  const ahead = packAhead({ expressions: ['a', { b: 1 }, 2n] });
  assert.equal(pack({ before: 1, part: ahead, behind: [ahead] }), expected);
});

test('more than there is room for at first, and little again', () => {
  const elements = Array.from({ length: 3000 }, (_, index): NftElement => ({ key: new Uint8Array(300).fill(index) }));
  const operation = {
    verb: 'add',
    object: { kind: 'elements', family: 'inet', table: 't', set: 's', elements },
  } as const;
  assert.ok(native.encodeBatch([operation]).length > 900_000);
  assert.is(pack('x'.repeat(100_000)).length, 100_005);
  assert.ok(pack(1).buffer.byteLength < 100_000);
});

test('undefined is absent', () => {
  assert.is(pack(undefined).length, 0);
  assert.equal([...pack({ a: undefined, b: 1 })], [...pack({ b: 1 })]);
});

test('what is of another type is refused, and named where it is missing', () => {
  const wrong = (changes: object) => () => native.encodeRule('add', { ...rule, ...changes } as Rule);
  assert.throws(wrong({ priority: '7' }), /not a number/);
  assert.throws(wrong({ iif: 5 }), /not a string/);
  assert.throws(wrong({ fwmark: 5 }), /not an object/);
  assert.throws(wrong({ invert: 1 }), /not a boolean/);
  assert.throws(wrong({ family: undefined }), /family is missing/);
  assert.throws(wrong({ family: 'ipx' }), /unknown word: ipx/);
  assert.throws(wrong({ table: () => 5 }), /must be/);
  assert.throws(() => native.encodeBatch({} as never), /not an array/);
});

test('a getter that packs something else in between does no harm', () => {
  const plain = native.encodeRule('add', { ...rule, iif: 'lo' });
  const other = { ...rule, oif: 'x'.repeat(15) };
  const during = {
    ...rule,
    get iif() {
      native.encodeRule('add', other);
      pack('x'.repeat(200_000));
      return 'lo';
    },
  };
  assert.equal(native.encodeRule('add', during), plain);
  assert.throws(() =>
    pack({
      get x() {
        throw new Error('refused');
      },
    }),
  );
  assert.is(pack(null).length, 1);
});

test.run();
