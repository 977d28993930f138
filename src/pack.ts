/**
 * Values as bytes: native code reads them from there (src-native/bindings/packed.h) several times as fast as it reads members of
 * objects. Pure.
 */
import { endianness } from 'node:os';
import { invalidType } from './errors.js';

const littleEndian = endianness() === 'LE';

/** What a value begins with: Kind of packed.h. */
const kind = { null: 0, boolean: 1, number: 2, bigint: 3, string: 4, bytes: 5, array: 6, object: 7 } as const;

/** Most of what is packed is much smaller; what is larger is let go of with the next call. */
const ROOM = 1 << 16;
let bytes = new Uint8Array(ROOM);
let view = new DataView(bytes.buffer);
let at = 0;
const encoder = new TextEncoder();
/** Where a value keeps its bytes: those in a WeakMap would outlive it until old garbage is collected. */
const ahead = Symbol('packed ahead');
interface Packable {
  readonly [ahead]?: Uint8Array;
}

/** Packs now what is packed later, at a time when there is nothing else to do. It must not change in between. */
export function packAhead<T extends object>(value: T): T {
  Reflect.defineProperty(value, ahead, { value: pack(value).slice() });
  return value;
}

/**
 * The bytes are overwritten by the next call, unless that is made by a getter of what is being packed. Undefined is no bytes at
 * all, and so is a member that is undefined.
 */
export function pack(value: unknown): Uint8Array {
  const packed = (value as Packable | null | undefined)?.[ahead];
  if (packed) return packed;
  const start = at;
  if (start === 0 && bytes.length > ROOM) resize(ROOM);
  try {
    if (value !== undefined) put(value);
    return bytes.subarray(start, at);
  } finally {
    at = start;
  }
}

/** Not a `switch` of `typeof value`: V8 compiles each of these comparisons for itself to something much faster. */
function put(value: unknown): void {
  makeRoom(9);
  if (typeof value === 'string') {
    bytes[at++] = kind.string;
    putText(value);
  } else if (typeof value === 'object') {
    if (value === null) bytes[at++] = kind.null;
    else putObject(value);
  } else if (typeof value === 'number') {
    bytes[at++] = kind.number;
    view.setFloat64(at, value, littleEndian);
    at += 8;
  } else if (typeof value === 'bigint') {
    bytes[at++] = kind.bigint;
    view.setBigUint64(at, value, littleEndian);
    at += 8;
  } else if (typeof value === 'boolean') {
    bytes[at++] = kind.boolean;
    bytes[at++] = value ? 1 : 0;
  } else throw invalidType('a value', 'one that the kernel can be told', value);
}

function putObject(value: object): void {
  if (value instanceof Uint8Array) {
    bytes[at++] = kind.bytes;
    makeRoom(4 + value.length);
    view.setUint32(at, value.length, littleEndian);
    bytes.set(value, at + 4);
    at += 4 + value.length;
    return;
  }
  const packed = (value as Packable)[ahead];
  if (packed) {
    makeRoom(packed.length);
    bytes.set(packed, at);
    at += packed.length;
    return;
  }
  bytes[at++] = Array.isArray(value) ? kind.array : kind.object;
  const size = at;
  at += 4;
  if (Array.isArray(value)) for (const each of value) put(each);
  else
    for (const key in value) {
      const member = (value as Readonly<Record<string, unknown>>)[key];
      if (member === undefined) continue;
      putText(key);
      put(member);
    }
  view.setUint32(size, at - size - 4, littleEndian);
}

function putText(text: string): void {
  makeRoom(4 + 3 * text.length);
  // What is in a module's variables is fetched anew for each character.
  const room = bytes;
  const start = at + 4;
  let length = 0;
  for (; length < text.length; length++) {
    const code = text.charCodeAt(length);
    if (code > 0x7f) {
      length += encoder.encodeInto(text.slice(length), room.subarray(start + length)).written;
      break;
    }
    room[start + length] = code;
  }
  view.setUint32(at, length, littleEndian);
  at = start + length;
}

function makeRoom(size: number): void {
  if (at + size > bytes.length) resize(2 * (at + size));
}

function resize(size: number): void {
  const resized = new Uint8Array(size);
  resized.set(bytes.subarray(0, at));
  bytes = resized;
  view = new DataView(bytes.buffer);
}
