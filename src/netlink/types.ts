/**
 * What rtnetlink and nf_tables objects look like in TypeScript: plain data, both directions, types only.
 * Field names are those of `ip` and `nft` in camelCase; string values are the words `ip` and `nft` print. A number stands
 * where the kernel knows a value that this package has no word for, so that decoding never loses anything.
 * The C++ side of each type is one struct with one `describe` function in src-native/{rtnetlink,nftables}.
 */
export type * from './types/expression.js';
export type * from './types/nftables.js';
export type * from './types/rtnetlink.js';
