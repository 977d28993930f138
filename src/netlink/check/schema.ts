/**
 * What the checks of arguments are made of: one schema for each object, one check for each member. Whether a word such as
 * `prerouting` is known is native code's to say, which has the tables of them.
 */
import { invalidType, invalidValue, outOfRange } from '../../errors.js';

/** Where a value is; put into words only when something is wrong with it, since thousands are right. */
interface Place {
  readonly in?: Place;
  readonly key: string | number;
}
/** Of the member `key` of `object`, which is at `place`. */
export type Check = (
  value: unknown,
  place: Place,
  key: string | number,
  object: Readonly<Record<string, unknown>>,
) => void;

export const ROOT: Place = { key: '' };
export function at(place: Place, key: string | number): string {
  if (place === ROOT) return String(key);
  const whole = at(place.in ?? ROOT, place.key);
  return typeof key === 'number' ? `${whole}[${key}]` : `${whole}.${key}`;
}

const absentAllowed = new WeakSet<Check>();
export const optional = (member: Check): Check => {
  const check: Check = (value, place, key, object) => {
    if (value !== undefined) member(value, place, key, object);
  };
  absentAllowed.add(check);
  return check;
};
export const objectOf = (members: Readonly<Record<string, Check>>): Check => {
  const checks = new Map(Object.entries(members));
  const required = Object.keys(members).filter((key) => !absentAllowed.has(members[key] as Check));
  return (value, whole, name) => {
    if (typeof value !== 'object' || value === null) throw invalidType(at(whole, name), 'an object', value);
    const object = value as Readonly<Record<string, unknown>>;
    const place = { in: whole, key: name };
    for (const key in object) {
      // Inherited ones are told to the kernel, too.
      const check = checks.get(key);
      if (!check) throw invalidValue(at(whole, name), `an object of ${Object.keys(members).join(', ')}`, key);
      check(object[key], place, key, object);
    }
    for (const key of required) if (object[key] === undefined) (members[key] as Check)(undefined, place, key, object);
  };
};
export const listOf =
  (each: Check): Check =>
  (value, whole, name) => {
    if (!Array.isArray(value)) throw invalidType(at(whole, name), 'an array', value);
    const place = { in: whole, key: name };
    for (let key = 0; key < value.length; key++) each(value[key], place, key, value as never);
  };
export const oneOf =
  (...words: readonly string[]): Check =>
  (value, place, key) => {
    if (!words.includes(value as string)) throw invalidValue(at(place, key), `one of ${words.join(', ')}`, value);
  };
export const number =
  (least: number, most: number): Check =>
  (value, place, key) => {
    if (typeof value !== 'number') throw invalidType(at(place, key), 'a number', value);
    if (!Number.isInteger(value) || value < least || value > most)
      throw outOfRange(at(place, key), `${least} to ${most}`, value);
  };

export const u8 = number(0, 0xff);
export const u16 = number(0, 0xffff);
export const u32 = number(0, 0xffffffff);
export const i32 = number(-0x80000000, 0x7fffffff);
export const u64: Check = (value, place, key) => {
  if (typeof value !== 'bigint') throw invalidType(at(place, key), 'a bigint', value);
  if (BigInt.asUintN(64, value) !== value) throw outOfRange(at(place, key), '0 to 2^64 - 1', value);
};
export const string: Check = (value, place, key) => {
  if (typeof value !== 'string') throw invalidType(at(place, key), 'a string', value);
  if (value.includes('\0')) throw invalidValue(at(place, key), 'without NUL', value);
};
export const flag: Check = (value, place, key) => {
  if (typeof value !== 'boolean') throw invalidType(at(place, key), 'a boolean', value);
};
export const bytes: Check = (value, place, key) => {
  if (!(value instanceof Uint8Array)) throw invalidType(at(place, key), 'a Uint8Array', value);
};
/** A name, or the kernel's number. */
export const word: Check = (value, place, key, object) => {
  if (typeof value !== 'string') u32(value, place, key, object);
};
export const words = listOf(word);
/** A schema for each `kind`. */
export const unionOf = (
  kinds: Readonly<Record<string, Readonly<Record<string, Check>>>>,
): Readonly<Record<string, Check>> =>
  Object.fromEntries(Object.entries(kinds).map(([kind, members]) => [kind, objectOf({ kind: string, ...members })]));

export function checkUnion(
  value: unknown,
  place: Place,
  key: string | number,
  kinds: Readonly<Record<string, Check>>,
  by: 'kind' | 'verb' = 'kind',
): void {
  const kind = String((value as { [by]?: unknown } | null | undefined)?.[by]);
  const member = Object.hasOwn(kinds, kind) ? kinds[kind] : undefined;
  if (!member) throw invalidValue(`${at(place, key)}.${by}`, `one of ${Object.keys(kinds).join(', ')}`, kind);
  member(value, place, key, {});
}

/** What only this package knows. (To a WeakSet it would take longer to add one than to check it.) */
const made = Symbol('made');
interface Marked {
  [made]?: true;
}
/** Marks an argument that this package has made itself: it need not be checked. */
export function unchecked<T extends object>(value: T): T {
  (value as Marked)[made] = true;
  return value;
}

/** Of an argument of that name. */
export function checkArgument(key: string, value: unknown, member: Check): void {
  if (!(value as Marked | null | undefined)?.[made]) member(value, ROOT, key, {});
}

/** Of the sockets' `watch`. */
export function checkWatch(filter: unknown, onChanges: unknown, member: Check): void {
  checkArgument('filter', filter, member);
  if (typeof onChanges !== 'function') throw invalidType('onChanges', 'a function', onChanges);
}

const socketOptions = objectOf({ netns: optional(string) });
export function checkSocketOptions(options: unknown): void {
  checkArgument('options', options, socketOptions);
}
