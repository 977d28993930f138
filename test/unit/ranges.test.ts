import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  addressRange,
  addressToNumber,
  formatRange,
  intervalElements,
  merge,
  parsePorts,
  parsePrefix,
  parsePrefixes,
  portRange,
  rangesOfElements,
} from '../../src/intercept/ranges.js';

const test = suite('ranges');
const ports = (...specs: (number | string)[]) => parsePorts('tcp', specs).map((range) => formatRange(portRange, range));

test('ports: numbers, strings and ranges are sorted and merged as nft auto-merge does', () => {
  assert.equal(ports(443, '80', '8000-8999'), ['80', '443', '8000-8999']);
  assert.equal(ports(80, 81, '82-90', '85-99'), ['80-99']);
  assert.equal(ports('1-65535', 80), ['1-65535']);
  assert.equal(parsePorts('tcp', true), [{ start: 1n, end: 65535n }]);
});

test('ports that cannot be meant are refused, and the message names the option and the value', () => {
  const bad: [unknown, typeof RangeError | typeof TypeError, RegExp][] = [
    [[0], RangeError, /tcp: a port must be from 1 to 65535, not 0/],
    [[65536], RangeError, /65536/],
    [['90-80'], RangeError, /'90-80'/],
    [['http'], TypeError, /'http'/],
    [[1.5], TypeError, /1.5/],
    [[-1], TypeError, /-1/],
    [80, TypeError, /true or a list/],
  ];
  for (const [value, type, message] of bad)
    assert.throws(
      () => parsePorts('tcp', value as number[]),
      (error: Error) => error instanceof type && message.test(error.message),
    );
});

test('addresses become the number that their bytes make', () => {
  assert.is(addressToNumber('10.0.0.1'), 0x0a000001n);
  assert.is(addressToNumber('::'), 0n);
  assert.is(addressToNumber('::1'), 1n);
  assert.is(addressToNumber('fd77:1::ab'), 0xfd7700010000000000000000000000abn);
  assert.is(addressToNumber('1:2:3:4:5:6:7:8'), 0x00010002000300040005000600070008n);
  assert.is(addressToNumber('1:2:3:4:5:6:7::'), 0x00010002000300040005000600070000n);
  assert.is(addressToNumber('::ffff:10.0.0.1'), 0xffff0a000001n);
});

test('prefixes: both families mixed, printed as nft prints them', () => {
  const show = (...prefixes: string[]) => {
    const { ipv4, ipv6 } = parsePrefixes('to', prefixes);
    return [
      ...ipv4.map((range) => formatRange(addressRange('ipv4'), range)),
      ...ipv6.map((range) => formatRange(addressRange('ipv6'), range)),
    ];
  };
  assert.equal(show('fd00::/8', '10.0.0.0/8', '192.168.1.1', '2001:db8::1'), [
    '10.0.0.0/8',
    '192.168.1.1',
    '2001:db8::1',
    'fd00::/8',
  ]);
  assert.equal(show('10.0.0.0/9', '10.128.0.0/9'), ['10.0.0.0/8']);
  assert.equal(show('10.0.0.1', '10.0.0.2'), ['10.0.0.1-10.0.0.2']);
  assert.equal(show('0.0.0.0/0', '::/0'), ['0.0.0.0/0', '::/0']);
  assert.equal(show('1:0:0:2::', '1:2:3:4:5:6:7:0'), ['1:0:0:2::', '1:2:3:4:5:6:7:0']);
});

test('malformed prefixes are refused; host bits with the prefix that was probably meant', () => {
  for (const bad of [
    '',
    '10.0.0',
    '10.0.0.0/',
    '10.0.0.0/33',
    'fd00::/129',
    '10.0.0.0/8/8',
    'fe80::1%eth0',
    '10.0.0.0/x',
    '10.0.0.0.0',
    '010.0.0.0',
    '10.0.0.256',
    '10..0.0',
    '.10.0.0.0',
    '10.0.0.0.',
    '10/0.0.0',
    ' 10.0.0.0',
    'example.org',
  ])
    assert.throws(
      () => parsePrefix('to', bad),
      (error: Error) => /^to: a prefix/.test(error.message),
    );
  const whole = { family: 'ipv4', start: 0n, end: 0xffffffffn };
  assert.equal(parsePrefix('to', '0.0.0.0/0'), whole);
  assert.equal(parsePrefix('to', '255.255.255.255/32'), { ...whole, start: whole.end });
  assert.throws(() => parsePrefix('to', '10.1.2.3/8'), /'10.0.0.0\/8'/);
  assert.throws(() => parsePrefix('to', 'fd00::1/64'), /'fd00::\/64'/);
});

test('merge keeps every number and no other (random ranges against a plain bitmap)', () => {
  let seed = 12345;
  const random = (below: number) => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    return seed % below;
  };
  for (let round = 0; round < 200; round++) {
    const ranges = Array.from({ length: random(20) }, () => {
      const start = random(300);
      return { start: BigInt(start), end: BigInt(start + random(30)) };
    });
    const merged = merge(ranges);
    const has = (list: { start: bigint; end: bigint }[], value: bigint) =>
      list.some(({ start, end }) => start <= value && value <= end);
    for (let value = 0n; value < 340n; value++) assert.is(has(merged, value), has(ranges, value));
    for (const [index, range] of merged.entries())
      assert.ok(index === 0 || range.start > (merged[index - 1]?.end ?? 0n) + 1n);
  }
});

test('interval elements: a first end at zero, half-open pairs, no end behind the last number', () => {
  const keys = (...specs: (number | string)[]) =>
    intervalElements(portRange, parsePorts('tcp', specs)).map(
      ({ key, flags }) => Buffer.from(key).toString('hex') + (flags?.includes('intervalEnd') ? ' end' : ''),
    );
  assert.equal(keys(80, '8000-8999'), ['0000 end', '0050', '0051 end', '1f40', '2328 end']);
  assert.equal(keys('1-65535'), ['0000 end', '0001']);
  assert.equal(keys(), []);
});

test('interval elements read back, in whichever order the kernel lists an end and a beginning at the same place', () => {
  for (const ports of [[], [80], [80, '8000-8999'], ['1-65535'], ['65535'], [1, 3, '5-9', '11-65534']]) {
    const ranges = parsePorts('tcp', ports);
    assert.equal(rangesOfElements(portRange, intervalElements(portRange, ranges)), ranges);
  }
  for (const prefixes of [['0.0.0.0/0'], ['10.0.0.0/8', '192.0.2.1'], ['255.255.255.255']]) {
    const { ipv4 } = parsePrefixes('to', prefixes);
    const type = addressRange('ipv4');
    assert.equal(rangesOfElements(type, intervalElements(type, ipv4)), ipv4);
  }
  const at = (value: number, end?: 'end') => ({
    key: Uint8Array.of(0, value),
    ...(end && { flags: ['intervalEnd'] as const }),
  });
  for (const middle of [
    [at(20), at(20, 'end')],
    [at(20, 'end'), at(20)],
  ])
    assert.equal(rangesOfElements(portRange, [at(10), ...middle, at(30, 'end')]), [{ start: 10n, end: 29n }]);
});

test.run();
