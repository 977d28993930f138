/** Every Error class and code of the package. Nothing else makes an Error out of what native code tells. */
import { type NativeFailure, native } from './native.js';

type NetlinkFailure = Extract<NativeFailure, { kind: 'netlink' }>;
type SocketFailure = Extract<NativeFailure, { kind: 'socket' }>;
