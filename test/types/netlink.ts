/**
 * Not run: `tsc` reads it with the rest. The types of `linux-tproxy/netlink` are unions by `kind` (and `verb`), so that what one
 * kind does not have, or a word that is none, does not compile. An error that is not there is an error too.
 */
import type {
  Address,
  Link,
  LinkChange,
  LinkInfo,
  NewLink,
  NftElement,
  NftExpression,
  NftKey,
  NftObject,
  NftOperation,
  NftSet,
  NftTable,
  Route,
  RouteChange,
  RouteOperation,
  Rule,
} from 'linux-tproxy/netlink';
import { NftablesSocket, RouteSocket } from 'linux-tproxy/netlink';

const inX = { family: 'inet', table: 'x' } as const;
const data = new Uint8Array(4);
const table: NftTable = { kind: 'table', family: 'inet', name: 'x' };
const rule: Rule = { family: 'ipv4', action: 'nop' };

export const expressions: readonly NftExpression[] = [
  { kind: 'meta', key: 'mark', dreg: 1 },
  { kind: 'meta', key: 99, dreg: 1 }, // a number that has no word
  // @ts-expect-error no such kind
  { kind: 'teleport' },
  // @ts-expect-error no such key
  { kind: 'meta', key: 'marc', dreg: 1 },
  // @ts-expect-error of another kind
  { kind: 'meta', key: 'mark', dreg: 1, data },
  // @ts-expect-error without what it compares with
  { kind: 'cmp', op: 'eq', sreg: 1 },
  // @ts-expect-error a counter counts in bigints
  { kind: 'counter', packets: 1, bytes: 1n },
  // @ts-expect-error loads nothing
  { kind: 'payload', base: 'network', offset: 12, length: 4, sreg: 1 },
];

export const objects: readonly NftObject[] = [
  table,
  { kind: 'chain', ...inX, name: 'c', type: 'filter', hook: 'input', priority: 0 },
  { kind: 'elements', ...inX, set: 's', elements: [{ key: data, timeoutMs: 1000n }] },
  // @ts-expect-error a set has the type of its keys
  { kind: 'set', ...inX, name: 's' },
  // @ts-expect-error no such hook
  { kind: 'chain', ...inX, name: 'c', type: 'filter', hook: 'prerooting', priority: 0 },
  // @ts-expect-error a rule has no name
  { kind: 'rule', ...inX, chain: 'c', name: 'r', expressions: [] },
  // @ts-expect-error a table is in no table
  { kind: 'table', family: 'inet', table: 'x', name: 'x' },
];

export const operations: readonly NftOperation[] = [
  { verb: 'add', object: table },
  { verb: 'insert', object: { kind: 'rule', ...inX, chain: 'c', expressions: [] } },
  // @ts-expect-error only rules are inserted
  { verb: 'insert', object: table },
  // @ts-expect-error nothing is in a counter
  { verb: 'flush', object: { kind: 'counter', ...inX, name: 'web' } },
  // @ts-expect-error no such verb
  { verb: 'replace', object: table },
];

export const keys: readonly NftKey[] = [
  { kind: 'rule', ...inX, chain: 'c', handle: 2n },
  { kind: 'elements', ...inX, set: 's', elements: [{ key: data, flags: ['intervalEnd'] }] },
  // @ts-expect-error a rule is named by its handle
  { kind: 'rule', ...inX, chain: 'c' },
  // @ts-expect-error elements are named by their keys
  { kind: 'elements', ...inX, set: 's' },
];

export const routeOperations: readonly RouteOperation[] = [
  { verb: 'add', kind: 'rule', rule },
  // @ts-expect-error the kernel replaces no policy rules
  { verb: 'replace', kind: 'rule', rule },
  // @ts-expect-error the object of another kind
  { verb: 'add', kind: 'route', rule },
  { verb: 'set', kind: 'link', dev: 'eth0', change: { up: true } },
  // @ts-expect-error only links are set
  { verb: 'set', kind: 'rule', rule },
  // @ts-expect-error the kernel replaces no links
  { verb: 'replace', kind: 'link', link: { name: 'dummy0', linkInfo: { kind: 'dummy' } } },
  // @ts-expect-error which one it is that changes
  { verb: 'set', kind: 'link', change: { up: true } },
];

export const linkInfos: readonly LinkInfo[] = [
  { kind: 'veth', peer: { name: 'far0', netns: '/run/netns/far' } },
  { kind: 'vlan', id: 5, protocol: '802.1ad' },
  { kind: 'unknown', name: 'vxlan', data },
  // @ts-expect-error a kind without a word here is `unknown`
  { kind: 'vxlan', data },
  // @ts-expect-error a vlan has a number
  { kind: 'vlan' },
  // @ts-expect-error of another kind
  { kind: 'bridge', id: 5 },
  // @ts-expect-error the kernel puts no peer into a bridge
  { kind: 'veth', peer: { master: 'br0' } },
];

export const newLinks: readonly NewLink[] = [
  { name: 'eth0.5', link: 'eth0', linkInfo: { kind: 'vlan', id: 5 } },
  // @ts-expect-error of no kind
  { name: 'eth0.5', link: 'eth0' },
];

export const others: {
  routes: readonly Route[];
  addresses: readonly Address[];
  elements: readonly NftElement[];
  changes: readonly LinkChange[];
} = {
  // @ts-expect-error no such type
  routes: [{ family: 'ipv4', type: 'uniquecast', destination: 'default', table: 254 }],
  // @ts-expect-error a link by its number, not its name
  addresses: [{ family: 'ipv4', address: '10.0.0.1', prefixLength: 8, dev: 'eth0', scope: 'universe' }],
  // @ts-expect-error no such flag
  elements: [{ key: data, flags: ['end'] }],
  // @ts-expect-error bytes are written as text
  changes: [{ address: data }],
};

/** What is read back is of the kind that was asked for. */
export async function readBack(): Promise<void> {
  const nftables = new NftablesSocket();
  const sets: NftSet[] = await nftables.list('set');
  // @ts-expect-error of another kind
  const chains: NftSet[] = await nftables.list('chain');
  const found: NftTable = await nftables.get(table);
  // @ts-expect-error no such kind
  await nftables.list('sets');
  const route = new RouteSocket();
  const link: Link = await route.linkGet('eth0');
  // @ts-expect-error only where the kind is known
  void link.linkInfo?.id;
  if (link.linkInfo?.kind === 'vlan') void link.linkInfo.id;
  route.watch((changes: RouteChange[]) => {
    for (const change of changes) {
      // @ts-expect-error a change that was lost tells nothing
      void change.verb;
      if (change.kind === 'link') void change.link.name;
    }
  });
  void [sets, chains, found];
}
