import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { checkOptions, errorFromFailure, NetlinkError, SocketError } from '../../src/errors.js';

const test = suite('errors');

test('a NetlinkError has what the kernel said, and its message ends with the remedy', () => {
  const error = errorFromFailure({
    kind: 'netlink',
    errno: 1,
    code: 'EPERM',
    operation: 'add rule',
    request: 'RTM_NEWRULE',
    attribute: 'FRA_TABLE',
    extack: 'no such thing',
  }) as NetlinkError;
  assert.instance(error, NetlinkError);
  assert.equal(
    { name: error.name, code: error.code, errno: error.errno, request: error.request, attribute: error.attribute },
    { name: 'NetlinkError', code: 'EPERM', errno: -1, request: 'RTM_NEWRULE', attribute: 'FRA_TABLE' },
  );
  assert.match(
    error.message,
    /^add rule \(RTM_NEWRULE, FRA_TABLE\): EPERM, operation not permitted "no such thing"\. This needs CAP_NET_ADMIN/,
  );
});

test('every message of a failed batch, with errno negative as in Node', () => {
  const message = { index: 3, errno: 2, code: 'ENOENT', request: 'NFT_MSG_NEWRULE', attribute: 'NFTA_LIST_ELEM' };
  const error = errorFromFailure({
    kind: 'netlink',
    operation: 'commit batch',
    ...message,
    errors: [message],
  }) as NetlinkError;
  assert.equal(error.errors, [{ ...message, errno: -2 }]);
  assert.match(error.message, 'nft_tproxy');
});

test("a SocketError has Node's shape", () => {
  const error = errorFromFailure({
    kind: 'socket',
    errno: 98,
    code: 'EADDRINUSE',
    syscall: 'bind',
    address: '::1',
    port: 80,
  });
  assert.instance(error, SocketError);
  assert.match(error.message, /^bind \[::1\]:80: EADDRINUSE, address already in use\. .*ss -antp/);
  const { code, errno, syscall, address, port } = error as SocketError;
  assert.equal(
    { code, errno, syscall, address, port },
    { code: 'EADDRINUSE', errno: -98, syscall: 'bind', address: '::1', port: 80 },
  );
});

test('an option nobody knows is named, with those that are', () => {
  assert.throws(
    () => checkOptions('things', { tpc: 1 }, ['tcp', 'udp']),
    (error: Error & { code: string }) =>
      error instanceof TypeError && error.code === 'ERR_INVALID_ARG_VALUE' && /'tpc'.*tcp, udp/.test(error.message),
  );
});

test.run();
