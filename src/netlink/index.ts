/** `linux-tproxy/netlink`: rtnetlink and nf_tables for Node, as far as transparent proxying needs them. */
export { NetlinkError, type NetlinkMessageError } from '../errors.js';
export type { Family, Fwmark } from '../types.js';
export { type CommitOptions, type ListFilter, NftablesSocket } from './nftables.js';
export { type Guard, type GuardOptions, type NetlinkSocketOptions, RouteSocket } from './route.js';
export { sequence } from './sequence.js';
export type * from './types.js';
export {
  decodeComment,
  decodeSetUserdata,
  encodeComment,
  encodeOpenInterval,
  encodeSetUserdata,
  type SetUserdata,
} from './userdata.js';
