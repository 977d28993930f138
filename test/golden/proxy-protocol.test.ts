/** The headers of the PROXY protocol, byte for byte as haproxy.org's doc/proxy-protocol.txt lays them out (2.1 and 2.2). */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native.js';

const test = suite('golden PROXY protocol');
const header = (version: 1 | 2, source: [string, number], destination: [string, number]) =>
  native.encodeProxyHeader(
    version,
    { address: source[0], port: source[1] },
    { address: destination[0], port: destination[1] },
  );

test('version 1', () => {
  assert.is(
    String(header(1, ['192.168.0.1', 56324], ['192.168.0.11', 443])),
    'PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n',
  );
  assert.is(
    String(header(1, ['2001:db8::1', 1], ['2001:db8:ffff::ff', 65535])),
    'PROXY TCP6 2001:db8::1 2001:db8:ffff::ff 1 65535\r\n',
  );
  // The longest there is, by the specification 104 characters and the end of line.
  const longest = `${'ffff:'.repeat(7)}ffff`;
  assert.is(header(1, [longest, 65535], [longest, 65535]).length, 104);
});

const signature = '0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a';
const bytes = (hex: string) => Buffer.from(hex.replaceAll(' ', ''), 'hex');

test('version 2', () => {
  assert.equal(
    header(2, ['192.168.0.1', 56324], ['192.168.0.11', 443]),
    // signature, version 2 and PROXY, TCP over IPv4, 12 bytes: source, destination, their ports
    bytes(`${signature} 21 11 00 0c c0 a8 00 01 c0 a8 00 0b dc 04 01 bb`),
  );
  assert.equal(
    header(2, ['2001:db8::1', 1], ['fe80::aa', 65535]),
    bytes(
      `${signature} 21 21 00 24 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01 fe 80 00 00 00 00 00 00 00 00 00 00 00 00 00 aa 00 01 ff ff`,
    ),
  );
});

test('IPv4 through an IPv6 socket is IPv4; the interface of a link-local address is left out', () => {
  assert.is(String(header(1, ['::ffff:10.0.0.1', 7], ['10.0.0.2', 8])), 'PROXY TCP4 10.0.0.1 10.0.0.2 7 8\r\n');
  assert.is(String(header(1, ['fe80::1%1', 7], ['fe80::2', 8])), 'PROXY TCP6 fe80::1 fe80::2 7 8\r\n');
});

test.run();
