/** What NftablesSocket is given. */
import { invalidValue, outOfRange } from '../../errors.js';
import type { NftKey, NftOperation } from '../types.js';
import {
  at,
  bytes,
  type Check,
  checkArgument,
  checkUnion,
  checkWatch,
  flag,
  i32,
  listOf,
  number,
  objectOf,
  optional,
  ROOT,
  string,
  u32,
  u64,
  unionOf,
  word,
  words,
} from './schema.js';

const watchFilter = objectOf({ table: optional(string) });
export function checkNftWatch(filter: unknown, onChanges: unknown): void {
  checkWatch(filter, onChanges, watchFilter);
}

/** nf_tables keeps at most this much userdata with an object. */
const userdata = optional((value, place, key, object) => {
  bytes(value, place, key, object);
  if ((value as Uint8Array).length > 256)
    throw outOfRange(`${at(place, key)}.length`, 'at most 256', (value as Uint8Array).length);
});

const expressions = unionOf({
  meta: { key: word, dreg: optional(u32), sreg: optional(u32) },
  payload: { base: word, offset: u32, length: u32, dreg: u32 },
  cmp: { op: word, sreg: u32, data: bytes },
  bitwise: { sreg: u32, dreg: u32, length: u32, mask: bytes, xor: bytes },
  immediate: { dreg: u32, data: bytes },
  verdict: { verdict: word, chain: optional(string) },
  lookup: { set: string, setId: optional(u32), sreg: u32, dreg: optional(u32), invert: optional(flag) },
  dynset: {
    set: string,
    setId: optional(u32),
    op: word,
    sregKey: u32,
    timeoutMs: optional(u64),
    invert: optional(flag),
  },
  fib: { result: word, flags: words, dreg: u32 },
  socket: { key: word, level: optional(u32), dreg: u32 },
  tproxy: { family: word, regAddr: optional(u32), regPort: optional(u32) },
  redir: { regProtoMin: optional(u32), regProtoMax: optional(u32), flags: optional(words) },
  ct: { key: word, direction: optional(word), dreg: optional(u32), sreg: optional(u32) },
  counter: { packets: u64, bytes: u64 },
  byteorder: { op: word, sreg: u32, dreg: u32, length: u32, size: u32 },
  objref: { type: word, name: string },
  match: { name: string, revision: u32, info: bytes },
  target: { name: string, revision: u32, info: bytes },
  unknown: { name: string, data: bytes },
});

const element = objectOf({
  key: bytes,
  keyEnd: optional(bytes),
  flags: optional(words),
  timeoutMs: optional(u64),
  expiresMs: optional(u64),
  userdata,
});

const keysOfIntervals = objectOf({ keyLength: number(1, 64), keys: bytes });
const intervals: Check = (value, place, key, object) => {
  keysOfIntervals(value, place, key, object);
  const { keyLength, keys } = value as { keyLength: number; keys: Uint8Array };
  if (keys.length % (2 * keyLength) !== 0)
    throw outOfRange(`${at(place, key)}.keys.length`, `a multiple of ${2 * keyLength}`, keys.length);
};

const objects = unionOf({
  table: { family: word, name: string, flags: optional(words), userdata, handle: optional(u64), owner: optional(u32) },
  chain: {
    family: word,
    table: string,
    name: string,
    type: optional(string),
    hook: optional(word),
    priority: optional(i32),
    policy: optional(word),
    userdata,
    handle: optional(u64),
  },
  rule: {
    family: word,
    table: string,
    chain: string,
    expressions: listOf((value, place, key) => checkUnion(value, place, key, expressions)),
    compatProtocol: optional(u32),
    compatFlags: optional(u32),
    userdata,
    handle: optional(u64),
    position: optional(u64),
  },
  set: {
    family: word,
    table: string,
    name: string,
    id: optional(u32),
    flags: optional(words),
    keyType: u32,
    keyLength: u32,
    concatenation: optional(listOf(u32)),
    timeoutMs: optional(u64),
    gcIntervalMs: optional(u32),
    size: optional(u32),
    policy: optional(word),
    userdata,
    handle: optional(u64),
  },
  elements: {
    family: word,
    table: string,
    set: string,
    setId: optional(u32),
    elements: listOf(element),
    intervals: optional(intervals),
  },
  counter: {
    family: word,
    table: string,
    name: string,
    packets: optional(u64),
    bytes: optional(u64),
    userdata,
    handle: optional(u64),
    use: optional(u32),
  },
});

const VERBS: Readonly<Record<NftOperation['verb'], readonly string[]>> = {
  add: Object.keys(objects),
  create: Object.keys(objects),
  delete: Object.keys(objects),
  deleteEmpty: ['table', 'chain', 'set'],
  insert: ['rule'],
  flush: ['table', 'chain', 'set'],
};

const operation = objectOf({ verb: string, object: (value, place, key) => checkUnion(value, place, key, objects) });
const operations = listOf((value, place, key, list) => {
  operation(value, place, key, list);
  const { verb, object } = value as NftOperation;
  if (!Object.hasOwn(VERBS, verb))
    throw invalidValue(`${at(place, key)}.verb`, `one of ${Object.keys(VERBS).join(', ')}`, verb);
  if (!VERBS[verb].includes(object.kind))
    throw invalidValue(`${at(place, key)}.object.kind`, VERBS[verb].join(', '), object.kind);
});

export function checkOperations(value: readonly NftOperation[]): void {
  checkArgument('operations', value, operations);
}

const commitOptions = objectOf({ generation: optional(u32), dryRun: optional(flag) });
export function checkCommitOptions(options: unknown): void {
  checkArgument('options', options, commitOptions);
}

export function checkKind(kind: string): void {
  if (!Object.hasOwn(objects, kind)) throw invalidValue('kind', Object.keys(objects).join(', '), kind);
}

const listFilter = objectOf({
  family: optional(word),
  table: optional(string),
  chain: optional(string),
  set: optional(string),
  counter: optional(string),
});
/** Elements are listed of one set, which has to be named. */
const elementsFilter = objectOf({ family: word, table: string, chain: optional(string), set: string });
/** A counter that is named is asked for by its whole name. */
const counterFilter = objectOf({ family: word, table: string, counter: string });
export function checkCounterFilter(filter: { readonly counter?: string }): void {
  checkArgument('filter', filter, filter?.counter === undefined ? listFilter : counterFilter);
}

const named = { family: word, table: string, name: string };
const elementKey = objectOf({ key: bytes, keyEnd: optional(bytes), flags: optional(words) });
const keys = unionOf({
  table: { family: word, name: string },
  chain: named,
  rule: { family: word, table: string, chain: string, handle: u64 },
  set: named,
  counter: named,
  elements: { family: word, table: string, set: string, elements: listOf(elementKey) },
});
export function checkKey(key: NftKey): void {
  checkUnion(key, ROOT, 'key', keys);
}

export function checkListFilter(kind: string, filter: unknown): void {
  checkArgument('filter', filter, kind === 'elements' ? elementsFilter : listFilter);
}
