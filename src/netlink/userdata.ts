/**
 * What the `nft` command stores with an object for its own eyes: a list of attributes, each one byte of type, one of
 * length, then the value. The kernel keeps it and gives it back, and never looks inside. Pure: bytes only.
 * See libnftnl's include/libnftnl/udata.h and nft's src/mnl.c.
 */

/** The numbers are nft's host order, whatever the kernel's side is. */
const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

// enum nftnl_udata_table_types, nftnl_udata_rule_types: both begin with the comment.
const COMMENT = 0;
// enum nftnl_udata_set_types
const SET_KEYBYTEORDER = 0;
const SET_MERGE_ELEMENTS = 2;
const SET_KEY_TYPEOF = 3;
const SET_COMMENT = 7;
// enum nftnl_udata_set_typeof_types
const TYPEOF_EXPRESSION = 0;
const TYPEOF_DATA = 1;
// enum nftnl_udata_set_elem_types, nftnl_udata_set_elem_flags
const ELEMENT_FLAGS = 1;
const ELEMENT_INTERVAL_OPEN = 1;
// nft's own enum expr_types and enum byteorder
const EXPRESSION = { meta: 9, concatenation: 13, fib: 26 } as const;
const BYTEORDER = { none: 0, host: 1, network: 2 } as const;

/** A comment of at most 127 bytes, which nft prints as `comment "..."`, on a table or a rule. */
export function encodeComment(comment: string): Uint8Array {
  const text = terminated(comment);
  const bytes = new Uint8Array(2 + text.length);
  bytes[0] = COMMENT;
  bytes[1] = text.length;
  bytes.set(text, 2);
  return bytes;
}

/** The comment in a table's or rule's userdata, if there is one. */
export function decodeComment(userdata: Uint8Array | undefined): string | undefined {
  return textOf(attributesOf(userdata).get(COMMENT));
}

/** What nft notes about a set so that it can print it as it was written. */
export interface SetUserdata {
  /** How the bytes of a key are ordered. `none` for concatenations, whose fields each have their own. */
  readonly keyByteorder: keyof typeof BYTEORDER;
  /** `auto-merge`. */
  readonly autoMerge?: boolean;
  /** What the key was written as: nft notes it for concatenations and for sets inside rules. */
  readonly keyExpression?:
    | { readonly kind: 'concatenation' }
    /** The kernel's key number: 16 for `meta l4proto`. */
    | { readonly kind: 'meta'; readonly key: number }
    /** The kernel's result and flag numbers: 3 and 2 for `fib daddr type`. */
    | { readonly kind: 'fib'; readonly result: number; readonly flags: number };
  readonly comment?: string;
}

export function encodeSetUserdata(set: SetUserdata): Uint8Array {
  const bytes = number(SET_KEYBYTEORDER, BYTEORDER[set.keyByteorder]);
  if (set.autoMerge) bytes.push(...number(SET_MERGE_ELEMENTS, 1));
  const key = set.keyExpression;
  if (key) {
    const operands =
      key.kind === 'meta'
        ? number(0, key.key)
        : key.kind === 'fib'
          ? [...number(0, key.result), ...number(1, key.flags)]
          : [];
    const typeOf = [...number(TYPEOF_EXPRESSION, EXPRESSION[key.kind]), ...attribute(TYPEOF_DATA, operands)];
    bytes.push(...attribute(SET_KEY_TYPEOF, typeOf));
  }
  if (set.comment !== undefined) bytes.push(...attribute(SET_COMMENT, [...terminated(set.comment)]));
  return new Uint8Array(bytes);
}

/** What can be told without knowing all of nft; the rest is passed over. */
export function decodeSetUserdata(
  userdata: Uint8Array | undefined,
): Pick<SetUserdata, 'keyByteorder' | 'autoMerge' | 'comment'> {
  const attributes = attributesOf(userdata);
  const byteorder = numberOf(attributes.get(SET_KEYBYTEORDER));
  const comment = textOf(attributes.get(SET_COMMENT));
  return {
    keyByteorder: byteorder === BYTEORDER.host ? 'host' : byteorder === BYTEORDER.network ? 'network' : 'none',
    ...(numberOf(attributes.get(SET_MERGE_ELEMENTS)) ? { autoMerge: true } : {}),
    ...(comment === undefined ? {} : { comment }),
  };
}

/**
 * Userdata of the last element of an interval set, where its range reaches the type's maximum and so has no end element
 * (nft notes it in ports up to 65535 and addresses up to the last).
 */
export function encodeOpenInterval(): Uint8Array {
  return new Uint8Array(number(ELEMENT_FLAGS, ELEMENT_INTERVAL_OPEN));
}

function attribute(type: number, value: readonly number[]): number[] {
  if (value.length > 255) throw new RangeError(`userdata attribute of ${value.length} bytes, at most 255`);
  return [type, value.length, ...value];
}

function number(type: number, value: number): number[] {
  const bytes = [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
  return attribute(type, littleEndian ? bytes : bytes.reverse());
}

function terminated(comment: string): Uint8Array {
  const bytes = Buffer.from(`${comment}\0`);
  if (bytes.length > 128 || comment.includes('\0')) throw new RangeError('a comment has at most 127 bytes and no NUL');
  return bytes;
}

/** Attributes by type; empty where the bytes are not such a list. */
function attributesOf(userdata: Uint8Array | undefined): Map<number, Uint8Array> {
  const attributes = new Map<number, Uint8Array>();
  for (let rest = userdata ?? new Uint8Array(); rest.length > 0; ) {
    const [type, length] = rest;
    if (type === undefined || length === undefined || rest.length < 2 + length) return new Map();
    attributes.set(type, rest.subarray(2, 2 + length));
    rest = rest.subarray(2 + length);
  }
  return attributes;
}

function numberOf(value: Uint8Array | undefined): number | undefined {
  if (value?.length !== 4) return undefined;
  return new DataView(value.buffer, value.byteOffset).getUint32(0, littleEndian);
}

function textOf(value: Uint8Array | undefined): string | undefined {
  if (!value) return undefined;
  const end = value.indexOf(0);
  return new TextDecoder().decode(end < 0 ? value : value.subarray(0, end));
}
