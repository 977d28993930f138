/**
 * Checks arguments before native code takes them: one schema for each object, one check for each member. Whether a word
 * such as `prerouting` is known is native code's to say, which has the tables of them.
 */
import { isIPv4, isIPv6 } from 'node:net';
import { invalidType, invalidValue, outOfRange } from '../errors.js';
import type { Family } from '../types.js';
import type { Address, LinkChange, NewLink, NftKey, NftOperation, Route, RouteQuery, Rule } from './types.js';

/** Where a value is; put into words only when something is wrong with it, since thousands are right. */
interface Place {
  readonly in?: Place;
  readonly key: string | number;
}
/** Of the member `key` of `object`, which is at `place`. */
type Check = (value: unknown, place: Place, key: string | number, object: Readonly<Record<string, unknown>>) => void;

const ROOT: Place = { key: '' };
function at(place: Place, key: string | number): string {
  if (place === ROOT) return String(key);
  const whole = at(place.in ?? ROOT, place.key);
  return typeof key === 'number' ? `${whole}[${key}]` : `${whole}.${key}`;
}

const absentAllowed = new WeakSet<Check>();
const optional = (member: Check): Check => {
  const check: Check = (value, place, key, object) => {
    if (value !== undefined) member(value, place, key, object);
  };
  absentAllowed.add(check);
  return check;
};
const objectOf = (members: Readonly<Record<string, Check>>): Check => {
  const checks = new Map(Object.entries(members));
  const required = Object.keys(members).filter((key) => !absentAllowed.has(members[key] as Check));
  return (value, whole, name) => {
    if (typeof value !== 'object' || value === null) throw invalidType(at(whole, name), 'an object', value);
    const object = value as Readonly<Record<string, unknown>>;
    const place = { in: whole, key: name };
    for (const key of Object.keys(object)) {
      const check = checks.get(key);
      if (!check) throw invalidValue(at(whole, name), `an object of ${Object.keys(members).join(', ')}`, key);
      check(object[key], place, key, object);
    }
    for (const key of required) if (object[key] === undefined) (members[key] as Check)(undefined, place, key, object);
  };
};
const listOf =
  (each: Check): Check =>
  (value, whole, name) => {
    if (!Array.isArray(value)) throw invalidType(at(whole, name), 'an array', value);
    const place = { in: whole, key: name };
    for (let key = 0; key < value.length; key++) each(value[key], place, key, value as never);
  };
const oneOf =
  (...words: readonly string[]): Check =>
  (value, place, key) => {
    if (!words.includes(value as string)) throw invalidValue(at(place, key), `one of ${words.join(', ')}`, value);
  };
const number =
  (least: number, most: number): Check =>
  (value, place, key) => {
    if (typeof value !== 'number') throw invalidType(at(place, key), 'a number', value);
    if (!Number.isInteger(value) || value < least || value > most)
      throw outOfRange(at(place, key), `${least} to ${most}`, value);
  };

const u8 = number(0, 0xff);
const u16 = number(0, 0xffff);
const u32 = number(0, 0xffffffff);
const i32 = number(-0x80000000, 0x7fffffff);
const u64: Check = (value, place, key) => {
  if (typeof value !== 'bigint') throw invalidType(at(place, key), 'a bigint', value);
  if (BigInt.asUintN(64, value) !== value) throw outOfRange(at(place, key), '0 to 2^64 - 1', value);
};
const string: Check = (value, place, key) => {
  if (typeof value !== 'string') throw invalidType(at(place, key), 'a string', value);
  if (value.includes('\0')) throw invalidValue(at(place, key), 'without NUL', value);
};
const flag: Check = (value, place, key) => {
  if (typeof value !== 'boolean') throw invalidType(at(place, key), 'a boolean', value);
};
const bytes: Check = (value, place, key) => {
  if (!(value instanceof Uint8Array)) throw invalidType(at(place, key), 'a Uint8Array', value);
};
/** A name, or the kernel's number. */
const word: Check = (value, place, key, object) => {
  if (typeof value !== 'string') u32(value, place, key, object);
};
const words = listOf(word);
const family: Check = (value, place, key) => {
  if (value !== 'ipv4' && value !== 'ipv6') throw invalidValue(at(place, key), `'ipv4' or 'ipv6'`, value);
};
const IFNAMSIZ = 16;
const ifname: Check = (value, place, key, object) => {
  string(value, place, key, object);
  if (value === '' || Buffer.byteLength(value as string) >= IFNAMSIZ)
    throw invalidValue(at(place, key), `an interface name of 1 to ${IFNAMSIZ - 1} bytes`, value);
};

/** A schema for each `kind`. */
const unionOf = (kinds: Readonly<Record<string, Readonly<Record<string, Check>>>>): Readonly<Record<string, Check>> =>
  Object.fromEntries(Object.entries(kinds).map(([kind, members]) => [kind, objectOf({ kind: string, ...members })]));

function checkUnion(value: unknown, place: Place, key: string | number, kinds: Readonly<Record<string, Check>>): void {
  const kind = String((value as { kind?: unknown } | null | undefined)?.kind);
  const member = Object.hasOwn(kinds, kind) ? kinds[kind] : undefined;
  if (!member) throw invalidValue(`${at(place, key)}.kind`, `one of ${Object.keys(kinds).join(', ')}`, kind);
  member(value, place, key, {});
}

/** Of an argument of that name. */
function checkArgument(key: string, value: unknown, member: Check): void {
  member(value, ROOT, key, {});
}

// ---- rtnetlink ------------------------------------------------------------------------------------------------------------

const isOf = (family: unknown, address: string): boolean => (family === 'ipv6' ? isIPv6(address) : isIPv4(address));

const address: Check = (value, place, key, { family }) => {
  if (typeof value !== 'string' || !isOf(family, value) || value.includes('%'))
    throw invalidValue(at(place, key), `an ${family} address`, value);
};
const prefix: Check = (value, place, key, { family }) => {
  if (value === 'default') return;
  const [, ip, length] = /^([^/%]+)(?:\/(\d{1,3}))?$/.exec(String(value)) ?? [];
  if (!ip || !isOf(family, ip) || Number(length ?? 0) > (family === 'ipv6' ? 128 : 32))
    throw invalidValue(at(place, key), `an ${family} prefix or 'default'`, value);
};
const range = (number: Check): Check => {
  const startAndEnd = objectOf({ start: number, end: number });
  return (value, place, key, object) => {
    startAndEnd(value, place, key, object);
    const { start, end } = value as { start: number; end: number };
    if (start > end) throw outOfRange(at(place, key), 'a start not above its end', `${start}-${end}`);
  };
};

const checkRuleObject = objectOf({
  family: family,
  action: word,
  priority: optional(u32),
  table: optional(u32),
  goto: optional(u32),
  invert: optional(flag),
  fwmark: optional(objectOf({ value: u32, mask: u32 })),
  iif: optional(ifname),
  oif: optional(ifname),
  from: optional(prefix),
  to: optional(prefix),
  tos: optional(u8),
  ipProtocol: optional(u8),
  sourcePorts: optional(range(u16)),
  destinationPorts: optional(range(u16)),
  users: optional(range(u32)),
  suppressPrefixLength: optional(u32),
  protocol: optional(u8),
  l3mdev: optional(flag),
});

/** An interface by its name or its number. */
const device: Check = (value, place, key, object) =>
  (typeof value === 'number' ? number(1, 0x7fffffff) : ifname)(value, place, key, object);

const checkRouteObject = objectOf({
  family: family,
  type: word,
  destination: prefix,
  table: u32,
  scope: optional(word),
  protocol: optional(u8),
  dev: optional(device),
  gateway: optional(address),
  preferredSource: optional(address),
  metric: optional(u32),
});

const rule: Check = (value, place, key, object) => {
  checkRuleObject(value, place, key, object);
  const { action, goto } = value as Rule;
  if (action === 'goto' && goto === undefined) throw invalidType(`${at(place, key)}.goto`, 'a priority', undefined);
};
const routeQuery = objectOf({
  family: family,
  destination: address,
  source: optional(address),
  iif: optional(device),
  oif: optional(device),
  mark: optional(u32),
  uid: optional(u32),
});
const addressObject = objectOf({
  family: family,
  address: address,
  peer: optional(address),
  broadcast: optional(address),
  prefixLength: (value, place, key, { family }) => number(0, family === 'ipv6' ? 128 : 32)(value, place, key, {}),
  linkIndex: number(1, 0x7fffffff),
  scope: word,
  flags: optional(words),
});
const mac: Check = (value, place, key) => {
  if (!/^[\da-f]{2}(:[\da-f]{2})*$/i.test(String(value)))
    throw invalidValue(at(place, key), `an address such as '02:00:00:00:00:01'`, value);
};
const index = number(1, 0x7fffffff);
const linkChange = {
  up: optional(flag),
  address: optional(mac),
  mtu: optional(u32),
  netns: optional((value, place, key, object) => {
    (typeof value === 'number' ? index : string)(value, place, key, object);
    if (value === '') throw invalidValue(at(place, key), 'a path', value);
  }),
  name: optional(ifname),
};
const master = optional((value, place, key, object) => {
  if (value !== null) device(value, place, key, object);
});
const linkInfo = unionOf({
  veth: { peer: optional(objectOf({ ...linkChange, index: optional(index) })) },
  bridge: {
    ...{ forwardDelay: optional(u32), helloTime: optional(u32), maxAge: optional(u32), ageingTime: optional(u32) },
    ...{ stpState: optional(u32), priority: optional(u16) },
    ...{ vlanFiltering: optional(flag), mcastSnooping: optional(flag) },
  },
  vlan: { id: number(0, 4095), protocol: optional(word) },
  macvlan: { mode: optional(word) },
  dummy: {},
  ifb: {},
  unknown: { name: string, data: optional(bytes) },
});
const newLink = objectOf({
  ...linkChange,
  master,
  name: ifname,
  index: optional(index),
  link: optional(device),
  linkInfo: (value, place, key) => checkUnion(value, place, key, linkInfo),
});
const routeOperations: Readonly<Record<string, Check>> = {
  rule: objectOf({ verb: oneOf('add', 'delete'), kind: string, rule }),
  route: objectOf({ verb: oneOf('add', 'replace', 'delete'), kind: string, route: checkRouteObject }),
  address: objectOf({ verb: oneOf('add', 'replace', 'delete'), kind: string, address: addressObject }),
};

export function checkRule(value: Rule): void {
  checkArgument('rule', value, rule);
}

export function checkRoute(value: Route): void {
  checkArgument('route', value, checkRouteObject);
}

export function checkRouteQuery(value: RouteQuery): void {
  checkArgument('query', value, routeQuery);
}

export function checkAddress(value: Address): void {
  checkArgument('address', value, addressObject);
}

export function checkLink(dev: string | number): void {
  checkArgument('dev', dev, device);
}

export function checkLinkChange(change: LinkChange): void {
  checkArgument('change', change, objectOf({ ...linkChange, master }));
}

export function checkNewLink(link: NewLink): void {
  checkArgument('link', link, newLink);
}

export function checkRouteOperations(operations: unknown): void {
  checkArgument(
    'operations',
    operations,
    listOf((value, place, key) => checkUnion(value, place, key, routeOperations)),
  );
}

export function checkFamily(value: Family | undefined): void {
  checkArgument('family', value, optional(family));
}

const routeFilter = objectOf({ family: optional(family), table: optional(u32) });
export function checkRouteFilter(filter: unknown): void {
  checkArgument('filter', filter, routeFilter);
}

export function checkRouteWatch(filter: unknown, onChanges: unknown): void {
  checkWatch(filter, onChanges, u32);
}

export function checkNftWatch(filter: unknown, onChanges: unknown): void {
  checkWatch(filter, onChanges, string);
}

function checkWatch(filter: unknown, onChanges: unknown, table: Check): void {
  checkArgument('filter', filter, objectOf({ table: optional(table) }));
  if (typeof onChanges !== 'function') throw invalidType('onChanges', 'a function', onChanges);
}

export function checkSocketOptions(options: unknown): void {
  checkArgument('options', options, objectOf({ netns: optional(string) }));
}

// ---- nf_tables ------------------------------------------------------------------------------------------------------------

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
