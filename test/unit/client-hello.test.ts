/** examples/tls-sni reads the name out of a ClientHello, in whatever pieces it comes. */
import { Duplex } from 'node:stream';
import { connect } from 'node:tls';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { readClientHello } from '../../examples/tls-sni/hello.mjs';

const test = suite('ClientHello');

/** What OpenSSL sends, as Node has it. */
function clientHello(servername?: string, more: object = {}): Promise<Buffer> {
  return new Promise((resolve) => {
    const wire = new Duplex({ read() {}, write: (chunk) => resolve(chunk) });
    connect({ socket: wire, ...(servername !== undefined && { servername }), ...more }).on('error', () => {});
  });
}

const number = (value: number, size: number) => {
  const bytes = Buffer.alloc(size);
  bytes.writeUIntBE(value, 0, size);
  return bytes;
};
const vector = (size: number, ...parts: Buffer[]) => {
  const body = Buffer.concat(parts);
  return Buffer.concat([number(body.length, size), body]);
};
const record = (body: Buffer) => Buffer.concat([Buffer.from([22, 3, 1]), vector(2, body)]);
const extension = (type: number, ...body: Buffer[]) => Buffer.concat([number(type, 2), vector(2, ...body)]);
const sni = (name: string) => extension(0, vector(2, number(0, 1), vector(2, Buffer.from(name))));
/** A message as Chrome makes it, GREASE (RFC 8701) first and last. */
const message = (...extensions: Buffer[]) =>
  Buffer.concat([
    Buffer.from([1]),
    vector(
      3,
      number(0x0303, 2),
      Buffer.alloc(32, 7),
      vector(1, Buffer.alloc(32)),
      vector(2, Buffer.from('1a1a1301', 'hex')),
      vector(1, Buffer.alloc(1)),
      vector(2, ...extensions),
    ),
  ]);

/** Reads it as the proxy does: never more than it asked for. */
function read(bytes: Buffer): string | undefined {
  for (let need = 0; ; ) {
    if (need > bytes.length) throw new Error('asks for more than there is');
    const hello = readClientHello(bytes.subarray(0, need));
    if (hello.need === undefined) return hello.serverName;
    assert.ok(hello.need > need, 'it asks for more, or it is done');
    need = hello.need;
  }
}

test("OpenSSL's", async () => {
  assert.is(read(await clientHello('Example.ORG')), 'example.org');
  assert.is(read(await clientHello()), undefined);
  const many = Array.from({ length: 400 }, (_, index) => `protocol-${index}`);
  const large = await clientHello('example.org', { ALPNProtocols: many });
  assert.ok(large.length > 4000);
  assert.is(read(large), 'example.org');
});

test('every beginning asks for more, and never for more than the whole', async () => {
  const hello = await clientHello('example.org');
  for (let length = 0; length < hello.length; length++) {
    const { need } = readClientHello(hello.subarray(0, length));
    assert.ok(need !== undefined && need > length && need <= hello.length, `${length}: ${need}`);
  }
});

test('in several records, of every size', async () => {
  const whole = (await clientHello('example.org')).subarray(5);
  for (const size of [1, 2, 3, 4, 5, 100, whole.length - 1]) {
    const records = [];
    for (let at = 0; at < whole.length; at += size) records.push(record(whole.subarray(at, at + size)));
    assert.is(read(Buffer.concat(records)), 'example.org', String(size));
  }
});

test('GREASE and encrypted ClientHello: the outer name counts', () => {
  const grease = extension(0x1a1a);
  const ech = extension(0xfe0d, Buffer.alloc(200, 1));
  assert.is(
    read(record(message(grease, ech, sni('outer.example'), extension(0xfafa, Buffer.alloc(1))))),
    'outer.example',
  );
  assert.is(read(record(message(grease, ech))), undefined);
});

test('what is none is refused, as soon as it can be known', async () => {
  const hello = await clientHello('example.org');
  for (const [bytes, reason] of [
    [Buffer.from('GET / HTTP/1.1\r\n'), /not TLS/],
    [Buffer.from('G'), /not TLS/],
    [Buffer.from('1600010005', 'hex'), /not TLS/],
    [Buffer.from('1603010000', 'hex'), /not TLS/],
    [Buffer.from('16030100040200000', 'hex').subarray(0, 9), /need/],
    [Buffer.from('160301000402000000', 'hex'), /no ClientHello/],
    [Buffer.from('1603014000' + '01004000', 'hex'), /too large/],
    [Buffer.concat(Array.from({ length: 9000 }, () => record(Buffer.alloc(1)))), /no ClientHello/],
    [record(message(Buffer.from('0000ffff', 'hex'))), /broken/],
    [record(message(extension(0, Buffer.from('00ff', 'hex')))), /broken/],
    [record(Buffer.concat([Buffer.from([1]), vector(3, Buffer.alloc(30))])), /broken/],
  ] as const) {
    if (reason.source === 'need') assert.ok(readClientHello(bytes).need);
    else assert.throws(() => readClientHello(bytes), reason);
  }
  // Whatever is changed in it: a name, more, or a reason; never a crash of another kind.
  for (let at = 0; at < hello.length; at++)
    for (const value of [0, 1, 0x7f, 0xff]) {
      const changed = Buffer.from(hello);
      changed[at] = value;
      try {
        readClientHello(changed);
      } catch (error) {
        assert.match(
          (error as Error).message,
          /^(not TLS|no ClientHello|too large a ClientHello|a broken ClientHello|too many records)$/,
        );
      }
    }
});

test.run();
