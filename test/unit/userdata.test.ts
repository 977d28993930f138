/** nft's userdata: what is in the captures is what is made here, and what is made is read back. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';
import { decodeComment, decodeSetUserdata, encodeComment, encodeSetUserdata } from '../../src/netlink/userdata.js';
import { read } from '../golden/fixture.js';

const test = suite('userdata');

const objects = ['sets', 'expressions'].flatMap((name) =>
  [...read(name).values()]
    .flat()
    .flatMap((message) => (message.length > 20 ? [native.decodeNftables(message).object] : [])),
);

test('comments', () => {
  const comments = objects.map((object) =>
    'userdata' in object && object.kind !== 'set' ? decodeComment(object.userdata) : undefined,
  );
  assert.equal(comments.filter(Boolean), ['every kind of set', 'a comment']);
  for (const comment of ['', 'ä€𝄞', 'x'.repeat(127)]) assert.is(decodeComment(encodeComment(comment)), comment);
  assert.throws(() => encodeComment('x'.repeat(128)), RangeError);
  assert.throws(() => encodeComment('a\0b'), RangeError);
});

test('sets', () => {
  const found = Object.fromEntries(
    objects.flatMap((object) => (object.kind === 'set' ? [[object.name, decodeSetUserdata(object.userdata)]] : [])),
  );
  assert.equal(found['ports'], { keyByteorder: 'network', autoMerge: true });
  assert.equal(found['users'], { keyByteorder: 'host' });
  assert.equal(found['concatenated'], { keyByteorder: 'none' });
  assert.equal(found['addresses'], { keyByteorder: 'network', comment: 'all options' });
  const all = { keyByteorder: 'host', autoMerge: true, comment: 'c' } as const;
  assert.equal(decodeSetUserdata(encodeSetUserdata({ ...all, keyExpression: { kind: 'meta', key: 16 } })), all);
});

test('none, or not nft’s', () => {
  assert.is(decodeComment(undefined), undefined);
  assert.is(decodeComment(new Uint8Array()), undefined);
  for (const bytes of [[0], [0, 5, 65], [1, 255, 0]]) assert.is(decodeComment(Uint8Array.from(bytes)), undefined);
  assert.is(decodeComment(Uint8Array.of(0, 2, 104, 105)), 'hi');
  assert.equal(decodeSetUserdata(Uint8Array.of(0, 2, 1, 1)), { keyByteorder: 'none' });
});

test.run();
