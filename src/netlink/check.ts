/**
 * Checks arguments before native code takes them: one schema for each object, one word for each member. Whether a word
 * such as `prerouting` is known is native code's to say, which has the tables of them.
 */
import { isIPv4, isIPv6 } from 'node:net';
import { invalidType, invalidValue, outOfRange } from '../errors.js';
import type { Family } from '../types.js';
import type { NftOperation, Route, Rule } from './types.js';

/** With `?` behind: may be absent. `word` is a name or the kernel's number, `words` a list of them. */
type Kind = 'text' | 'flag' | 'bytes' | 'u8' | 'u16' | 'u32' | 'i32' | 'u64' | 'word' | 'words' | 'family' | 'ifname';
type Check = (name: string, value: unknown, object: Readonly<Record<string, unknown>>) => void;
type Field = Kind | `${Kind}?` | Check;
type Schema = Readonly<Record<string, Field>>;

const LIMITS = { u8: [0, 0xff], u16: [0, 0xffff], u32: [0, 0xffffffff], i32: [-0x80000000, 0x7fffffff] } as const;
const IFNAMSIZ = 16;

function check(name: string, value: unknown, schema: Schema): void {
  if (typeof value !== 'object' || value === null) throw invalidType(name, 'an object', value);
  const object = value as Readonly<Record<string, unknown>>;
  for (const key of Object.keys(object))
    if (!(key in schema)) throw invalidValue(name, `an object of ${Object.keys(schema).join(', ')}`, key);
  for (const [key, field] of Object.entries(schema)) {
    if (typeof field === 'function') field(`${name}.${key}`, object[key], object);
    else if (object[key] !== undefined || !field.endsWith('?'))
      checkField(`${name}.${key}`, object[key], field.replace('?', '') as Kind);
  }
}

function checkField(name: string, value: unknown, kind: Kind): void {
  switch (kind) {
    case 'text':
      if (typeof value !== 'string') throw invalidType(name, 'a string', value);
      if (value.includes('\0')) throw invalidValue(name, 'without NUL', value);
      return;
    case 'ifname':
      checkField(name, value, 'text');
      if (value === '' || Buffer.byteLength(value as string) >= IFNAMSIZ)
        throw invalidValue(name, `an interface name of 1 to ${IFNAMSIZ - 1} bytes`, value);
      return;
    case 'flag':
      if (typeof value !== 'boolean') throw invalidType(name, 'a boolean', value);
      return;
    case 'bytes':
      if (!(value instanceof Uint8Array)) throw invalidType(name, 'a Uint8Array', value);
      return;
    case 'u64':
      if (typeof value !== 'bigint') throw invalidType(name, 'a bigint', value);
      if (BigInt.asUintN(64, value) !== value) throw outOfRange(name, '0 to 2^64 - 1', value);
      return;
    case 'word':
      if (typeof value !== 'string') checkField(name, value, 'u32');
      return;
    case 'words':
      checkList(name, value, (each, one) => checkField(each, one, 'word'));
      return;
    case 'family':
      if (value !== 'ipv4' && value !== 'ipv6') throw invalidValue(name, `'ipv4' or 'ipv6'`, value);
      return;
    default: {
      if (typeof value !== 'number') throw invalidType(name, 'a number', value);
      const [least, most] = LIMITS[kind];
      if (!Number.isInteger(value) || value < least || value > most)
        throw outOfRange(name, `${least} to ${most}`, value);
    }
  }
}

function checkList(name: string, value: unknown, each: (name: string, value: unknown) => void): void {
  if (!Array.isArray(value)) throw invalidType(name, 'an array', value);
  for (const [i, one] of value.entries()) each(`${name}[${i}]`, one);
}

const optional =
  (field: Check): Check =>
  (name, value, object) => {
    if (value !== undefined) field(name, value, object);
  };
const objectOf = (schema: Schema) => (name: string, value: unknown) => check(name, value, schema);
const listOf = (each: (name: string, value: unknown) => void) => (name: string, value: unknown) =>
  checkList(name, value, each);

// ---- rtnetlink ------------------------------------------------------------------------------------------------------------

const isOf = (family: unknown, address: string): boolean => (family === 'ipv6' ? isIPv6(address) : isIPv4(address));

const address: Check = (name, value, { family }) => {
  if (typeof value !== 'string' || !isOf(family, value) || value.includes('%'))
    throw invalidValue(name, `an ${family} address`, value);
};
const prefix: Check = (name, value, { family }) => {
  if (value === 'default') return;
  const [, ip, length] = /^([^/%]+)(?:\/(\d{1,3}))?$/.exec(String(value)) ?? [];
  if (!ip || !isOf(family, ip) || Number(length ?? 0) > (family === 'ipv6' ? 128 : 32))
    throw invalidValue(name, `an ${family} prefix or 'default'`, value);
};
const range =
  (kind: 'u16' | 'u32'): Check =>
  (name, value) => {
    check(name, value, { start: kind, end: kind });
    const { start, end } = value as { start: number; end: number };
    if (start > end) throw outOfRange(name, 'a start not above its end', `${start}-${end}`);
  };

const ruleSchema: Schema = {
  family: 'family',
  action: 'word',
  priority: 'u32?',
  table: 'u32?',
  goto: 'u32?',
  invert: 'flag?',
  fwmark: optional(objectOf({ value: 'u32', mask: 'u32' })),
  iif: 'ifname?',
  oif: 'ifname?',
  from: optional(prefix),
  to: optional(prefix),
  tos: 'u8?',
  ipProtocol: 'u8?',
  sourcePorts: optional(range('u16')),
  destinationPorts: optional(range('u16')),
  users: optional(range('u32')),
  suppressPrefixLength: 'u32?',
  protocol: 'u8?',
  l3mdev: 'flag?',
};

const routeSchema: Schema = {
  family: 'family',
  type: 'word',
  destination: prefix,
  table: 'u32',
  scope: 'word?',
  protocol: 'u8?',
  dev: optional((name, value) => {
    checkField(name, value, typeof value === 'number' ? 'u32' : 'ifname');
  }),
  gateway: optional(address),
  preferredSource: optional(address),
  metric: 'u32?',
};

export function checkRule(rule: Rule): void {
  check('rule', rule, ruleSchema);
  if (rule.action === 'goto' && rule.goto === undefined) throw invalidType('rule.goto', 'a priority', undefined);
}

export function checkRoute(route: Route): void {
  check('route', route, routeSchema);
}

export function checkFamily(family: Family | undefined): void {
  if (family !== undefined) checkField('family', family, 'family');
}

export function checkRouteFilter(filter: unknown): void {
  check('filter', filter, { family: 'family?', table: 'u32?' });
}

/** `kind` is that of the filter's one member. */
export function checkWatch(filter: unknown, onChanges: unknown, kind: 'u32' | 'text'): void {
  check('filter', filter, { table: `${kind}?` });
  if (typeof onChanges !== 'function') throw invalidType('onChanges', 'a function', onChanges);
}

export function checkSocketOptions(options: unknown): void {
  check('options', options, { netns: 'text?' });
}

// ---- nf_tables ------------------------------------------------------------------------------------------------------------

/** nf_tables keeps at most this much userdata with an object. */
const userdata = optional((name, value) => {
  checkField(name, value, 'bytes');
  if ((value as Uint8Array).length > 256)
    throw outOfRange(`${name}.length`, 'at most 256', (value as Uint8Array).length);
});

const expressionSchemas: Readonly<Record<string, Schema>> = {
  meta: { key: 'word', dreg: 'u32?', sreg: 'u32?' },
  payload: { base: 'word', offset: 'u32', length: 'u32', dreg: 'u32' },
  cmp: { op: 'word', sreg: 'u32', data: 'bytes' },
  bitwise: { sreg: 'u32', dreg: 'u32', length: 'u32', mask: 'bytes', xor: 'bytes' },
  immediate: { dreg: 'u32', data: 'bytes' },
  verdict: { verdict: 'word', chain: 'text?' },
  lookup: { set: 'text', setId: 'u32?', sreg: 'u32', dreg: 'u32?', invert: 'flag?' },
  dynset: { set: 'text', setId: 'u32?', op: 'word', sregKey: 'u32', timeoutMs: 'u64?', invert: 'flag?' },
  fib: { result: 'word', flags: 'words', dreg: 'u32' },
  socket: { key: 'word', level: 'u32?', dreg: 'u32' },
  tproxy: { family: 'word', regAddr: 'u32?', regPort: 'u32?' },
  redir: { regProtoMin: 'u32?', regProtoMax: 'u32?', flags: 'words?' },
  ct: { key: 'word', direction: 'word?', dreg: 'u32?', sreg: 'u32?' },
  counter: { packets: 'u64', bytes: 'u64' },
  byteorder: { op: 'word', sreg: 'u32', dreg: 'u32', length: 'u32', size: 'u32' },
  match: { name: 'text', revision: 'u32', info: 'bytes' },
  target: { name: 'text', revision: 'u32', info: 'bytes' },
  unknown: { name: 'text', data: 'bytes' },
};

const elementSchema: Schema = {
  key: 'bytes',
  keyEnd: 'bytes?',
  flags: 'words?',
  timeoutMs: 'u64?',
  expiresMs: 'u64?',
  userdata,
};

const objectSchemas: Readonly<Record<string, Schema>> = {
  table: { family: 'word', name: 'text', flags: 'words?', userdata, handle: 'u64?', owner: 'u32?' },
  chain: {
    family: 'word',
    table: 'text',
    name: 'text',
    type: 'text?',
    hook: 'word?',
    priority: 'i32?',
    policy: 'word?',
    userdata,
    handle: 'u64?',
  },
  rule: {
    family: 'word',
    table: 'text',
    chain: 'text',
    expressions: listOf((name, value) => checkUnion(name, value, expressionSchemas)),
    compatProtocol: 'u32?',
    compatFlags: 'u32?',
    userdata,
    handle: 'u64?',
    position: 'u64?',
  },
  set: {
    family: 'word',
    table: 'text',
    name: 'text',
    id: 'u32?',
    flags: 'words?',
    keyType: 'u32',
    keyLength: 'u32',
    concatenation: optional(listOf((name, value) => checkField(name, value, 'u32'))),
    timeoutMs: 'u64?',
    gcIntervalMs: 'u32?',
    size: 'u32?',
    policy: 'word?',
    userdata,
    handle: 'u64?',
  },
  elements: {
    family: 'word',
    table: 'text',
    set: 'text',
    setId: 'u32?',
    elements: listOf((name, value) => check(name, value, elementSchema)),
  },
};

function checkUnion(name: string, value: unknown, schemas: Readonly<Record<string, Schema>>): void {
  const kind = String((value as { kind?: unknown } | null | undefined)?.kind);
  const schema = Object.hasOwn(schemas, kind) ? schemas[kind] : undefined;
  if (!schema) throw invalidValue(`${name}.kind`, `one of ${Object.keys(schemas).join(', ')}`, kind);
  check(name, value, { kind: 'text', ...schema });
}

const VERBS: Readonly<Record<NftOperation['verb'], readonly string[]>> = {
  add: Object.keys(objectSchemas),
  create: Object.keys(objectSchemas),
  delete: Object.keys(objectSchemas),
  deleteEmpty: ['table', 'chain', 'set'],
  insert: ['rule'],
  flush: ['table', 'chain', 'set'],
};

export function checkOperations(operations: readonly NftOperation[]): void {
  checkList('operations', operations, (name, value) => {
    check(name, value, { verb: 'text', object: (each, object) => checkUnion(each, object, objectSchemas) });
    const { verb, object } = value as NftOperation;
    if (!Object.hasOwn(VERBS, verb))
      throw invalidValue(`${name}.verb`, `one of ${Object.keys(VERBS).join(', ')}`, verb);
    if (!VERBS[verb].includes(object.kind))
      throw invalidValue(`${name}.object.kind`, VERBS[verb].join(', '), object.kind);
  });
}

export function checkCommitOptions(options: unknown): void {
  check('options', options, { generation: 'u32?', dryRun: 'flag?' });
}

export function checkKind(kind: string): void {
  if (!Object.hasOwn(objectSchemas, kind)) throw invalidValue('kind', Object.keys(objectSchemas).join(', '), kind);
}

/** Elements are listed of one set, which has to be named. */
export function checkListFilter(kind: string, filter: unknown): void {
  const named = kind === 'elements';
  check('filter', filter, {
    family: named ? 'word' : 'word?',
    table: named ? 'text' : 'text?',
    chain: 'text?',
    set: named ? 'text' : 'text?',
  });
}
