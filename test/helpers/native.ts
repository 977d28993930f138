/** Native code with errors for tests: what it tells, as properties of an Error. */
import { native } from '../../src/native.js';

native.setErrorFactory((failure) => {
  const what = failure.kind === 'netlink' ? failure.operation : failure.syscall;
  return Object.assign(new Error(`${what}: ${failure.code}`), failure);
});

export { native };
