/** What RouteSocket is given. */
import { isIPv4, isIPv6 } from 'node:net';
import { invalidType, invalidValue, outOfRange } from '../../errors.js';
import type { Family } from '../../types.js';
import type { Address, LinkChange, NewLink, Route, RouteQuery, Rule } from '../types.js';
import {
  at,
  bytes,
  type Check,
  checkArgument,
  checkUnion,
  checkWatch,
  flag,
  listOf,
  number,
  objectOf,
  oneOf,
  optional,
  string,
  u8,
  u16,
  u32,
  unionOf,
  word,
  words,
} from './schema.js';

const IFNAMSIZ = 16;
const ifname: Check = (value, place, key, object) => {
  string(value, place, key, object);
  if (value === '' || Buffer.byteLength(value as string) >= IFNAMSIZ)
    throw invalidValue(at(place, key), `an interface name of 1 to ${IFNAMSIZ - 1} bytes`, value);
};

const family: Check = (value, place, key) => {
  if (value !== 'ipv4' && value !== 'ipv6') throw invalidValue(at(place, key), `'ipv4' or 'ipv6'`, value);
};

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

/** Addresses in it are of the family of the route. */
const nexthops: Check = (value, place, key, route) => {
  const gateway: Check = (each, hop, name) => address(each, hop, name, route);
  const hop = objectOf({ dev: optional(device), gateway: optional(gateway), weight: optional(number(1, 256)) });
  listOf(hop)(value, place, key, {});
};

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
  nexthops: optional(nexthops),
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
const checkLinkChangeObject = objectOf({ ...linkChange, master });
const linkOperations: Readonly<Record<string, Check>> = {
  add: objectOf({ verb: string, kind: string, link: newLink }),
  set: objectOf({ verb: string, kind: string, dev: device, change: checkLinkChangeObject }),
  delete: objectOf({ verb: string, kind: string, dev: device }),
};
const routeOperations: Readonly<Record<string, Check>> = {
  rule: objectOf({ verb: oneOf('add', 'delete'), kind: string, rule }),
  route: objectOf({ verb: oneOf('add', 'replace', 'delete'), kind: string, route: checkRouteObject }),
  address: objectOf({ verb: oneOf('add', 'replace', 'delete'), kind: string, address: addressObject }),
  link: (value, place, key) => checkUnion(value, place, key, linkOperations, 'verb'),
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
  checkArgument('change', change, checkLinkChangeObject);
}

export function checkNewLink(link: NewLink): void {
  checkArgument('link', link, newLink);
}

const listOfOperations = listOf((value, place, key) => checkUnion(value, place, key, routeOperations));
export function checkRouteOperations(operations: unknown): void {
  checkArgument('operations', operations, listOfOperations);
}

const optionalFamily = optional(family);
export function checkFamily(value: Family | undefined): void {
  checkArgument('family', value, optionalFamily);
}

const routeFilter = objectOf({ family: optional(family), table: optional(u32) });
export function checkRouteFilter(filter: unknown): void {
  checkArgument('filter', filter, routeFilter);
}

const routeWatchFilter = objectOf({ table: optional(u32), priorities: optional(listOf(u32)) });
export function checkRouteWatch(filter: unknown, onChanges: unknown): void {
  checkWatch(filter, onChanges, routeWatchFilter);
}
