import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { freeFwmark, freePriority, type HostState, markBitsOf, staleRules } from '../../src/intercept/host.js';
import type { NftExpression, Rule } from '../../src/netlink/types.js';

const test = suite('host');
const rule = (fields: Partial<Rule>): Rule => ({ family: 'ipv4', action: 'lookup', table: 100, ...fields });
const word = (value: number) => new Uint8Array(Uint32Array.of(value >>> 0).buffer);

test('mark bits: the classical ones when free, the next pair when not', () => {
  const choose = (rules: Rule[], markBits = 0) => freeFwmark({ rules, markBits });
  assert.equal(choose([]), { value: 0x1, mask: 0x3 });
  assert.equal(choose([rule({ fwmark: { value: 0x1, mask: 0xffffffff } })]), { value: 0x2, mask: 0x6 });
  assert.equal(choose([rule({ fwmark: { value: 0x1, mask: 0x3 } })]), { value: 0x4, mask: 0xc });
  assert.equal(choose([], 0x7fffffff & ~0x30), { value: 0x10, mask: 0x30 });
  assert.equal(choose([], 0x3fffffff), { value: 0x40000000, mask: 0xc0000000 });
  assert.throws(() => choose([], 0x55555555), /No two adjacent bits/);
});

test('wg-quick, Tailscale and Docker marks are kept clear of', () => {
  const wg = rule({ fwmark: { value: 0xca6c, mask: 0xffffffff }, invert: true, table: 51820 });
  const tailscale = rule({ fwmark: { value: 0x80000, mask: 0xff0000 } });
  const { mask } = freeFwmark({ rules: [wg, tailscale], markBits: 0x1 });
  assert.is(mask & (0xca6c | 0xff0000 | 0x1), 0);
});

test('a mark that is asked for and in use is refused with what is in use', () => {
  assert.throws(
    () => freeFwmark({ rules: [rule({ fwmark: { value: 1, mask: 0xff } })], markBits: 0 }, { value: 1, mask: 3 }),
    (error: Error & { code: string }) => error.code === 'ERR_TPROXY_MARK_IN_USE' && /0xff/.test(error.message),
  );
});

test('priorities: four in a row that nobody has', () => {
  assert.is(freePriority([]), 97);
  assert.is(freePriority([rule({ priority: 0 }), rule({ priority: 100 }), rule({ priority: 32766 })]), 96);
  assert.is(freePriority([rule({ priority: 94 }), rule({ priority: 97 })]), 90);
  assert.throws(() => freePriority([rule({ priority: 99 })], 97), /97 to 100/);
});

test('mark bits of nf_tables rules: compared, set and masked', () => {
  const load: NftExpression = { kind: 'meta', key: 'mark', dreg: 1 };
  const store: NftExpression = { kind: 'meta', key: 'mark', sreg: 1 };
  const bitwise = (mask: number, xor: number): NftExpression => ({
    kind: 'bitwise',
    sreg: 1,
    dreg: 1,
    length: 4,
    mask: word(mask),
    xor: word(xor),
  });
  const cmp = (value: number): NftExpression => ({ kind: 'cmp', op: 'eq', sreg: 1, data: word(value) });
  // meta mark 0x5
  assert.is(markBitsOf([load, cmp(5)]), 5);
  // meta mark & 0xff == 0x5
  assert.is(markBitsOf([load, bitwise(0xff, 0), cmp(5)]), 0xff);
  // meta mark set 0x42
  assert.is(markBitsOf([{ kind: 'immediate', dreg: 1, data: word(0x42) }, store]), 0x42);
  // meta mark set meta mark | 0x10
  assert.is(markBitsOf([load, bitwise(~0x10, 0x10), store]), 0x10);
  // ip daddr 10.0.0.1 meta mark 0x1: the address is no mark
  const address: NftExpression[] = [
    { kind: 'payload', base: 'network', offset: 16, length: 4, dreg: 1 },
    cmp(0x0100000a),
  ];
  assert.is(markBitsOf([...address, load, cmp(1)]), 1);
});

test('mark bits of iptables (nft variant) rules', () => {
  const info = (...words: number[]) => new Uint8Array(Uint32Array.from(words).buffer);
  assert.is(markBitsOf([{ kind: 'target', name: 'MARK', revision: 2, info: info(1, 0xffffffff) }]), 1);
  assert.is(markBitsOf([{ kind: 'match', name: 'mark', revision: 1, info: info(0x10, 0xf0, 0) }]), 0xf0);
  assert.is(markBitsOf([{ kind: 'target', name: 'TPROXY', revision: 1, info: info(0x1, 0x1, 0, 0, 0, 0, 0) }]), 1);
  assert.is(markBitsOf([{ kind: 'match', name: 'socket', revision: 1, info: info(1) }]), 0);
  // Of the connection's, too: --mark 0x4/0xc, --set-xmark 0x10/0x30; --restore-mark names no bit.
  assert.is(markBitsOf([{ kind: 'match', name: 'connmark', revision: 1, info: info(4, 0xc, 0, 0) }]), 0xc);
  const connmark = (mode: number) => info(0x10, 0x30, 0xffffffff, mode << 16);
  assert.is(markBitsOf([{ kind: 'target', name: 'CONNMARK', revision: 2, info: connmark(0) }]), 0x30);
  assert.is(markBitsOf([{ kind: 'target', name: 'CONNMARK', revision: 2, info: connmark(2) }]), 0);
});

test('stale: tagged and of our form, and claimed by no table', () => {
  const mine = (priority: number) => rule({ protocol: 84, priority, fwmark: { value: 1, mask: 3 } });
  const host = {
    rules: [
      mine(98),
      mine(93),
      rule({ protocol: 84, priority: 50 }),
      rule({ protocol: 3, priority: 10, fwmark: { value: 1, mask: 3 } }),
    ],
    claims: [{ fwmark: { value: 1, mask: 3 }, table: 100, priority: 97 }],
  } as unknown as HostState;
  assert.equal(
    staleRules(host).map(({ priority }) => priority),
    [93],
  );
});

test.run();
