/**
 * What should be there against what is: what of an interception is missing or changed, in words and as objects. Only reads.
 * Who has the plan compares all of it (install.ts, watch.ts), who has the claim alone its policy rules and routes (installed.ts).
 */
import { NetlinkError } from '../errors.js';
import type { NftChain, NftExpression, NftObject, NftRule, NftSet, Route, Rule } from '../netlink/types.js';
import { canonical } from './canonical.js';
import type { Kernel } from './kernel.js';
import { tableObject } from './nftables.js';
import type { Plan } from './plan.js';
import { ANONYMOUS_SET } from './statement.js';

/** Something of a plan that is missing or not as it was. `what` names it as `ip` and `nft` do. */
export type Loss =
  | { readonly kind: 'rule'; readonly what: string; readonly rule: Rule }
  /** `instead`: what has its place. */
  | { readonly kind: 'route'; readonly what: string; readonly route: Route; readonly instead: readonly Route[] }
  /** `gone`: all of it. */
  | { readonly kind: 'table'; readonly what: string; readonly gone: boolean }
  /** The process that clears up behind this one. */
  | { readonly kind: 'guard'; readonly what: string }
  /** With backend `iptables`: the table, which holds the claim alone; of our chains. */
  | { readonly kind: 'claim' | 'mangle'; readonly what: string };

export type RoutingLoss = Extract<Loss, { kind: 'rule' | 'route' }>;

export async function findRoutingLosses({ route }: Kernel, plan: Plan): Promise<RoutingLoss[]> {
  if (plan.rules.length === 0) return [];
  const [rules, routes] = await Promise.all([route.ruleList(), route.routeList({ table: plan.table })]);
  return routingLosses(plan, { rules, routes });
}

/** What makes the kernel deliver the marked packets here. */
export type Routing = Pick<Plan, 'rules' | 'routes'>;

export function routingLosses(wanted: Routing, found: Routing): RoutingLoss[] {
  return [
    ...wanted.routes.flatMap((route) => routeLoss(route, found.routes)),
    ...wanted.rules.filter((rule) => !found.rules.some((each) => contains(each, rule))).map(ruleLoss),
  ];
}

function routeLoss(route: Route, found: readonly Route[]): RoutingLoss[] {
  // IPv6 routes have no scope: it reads back as another one.
  const { scope: _, ...wanted } = route;
  if (found.some((each) => contains(each, wanted))) return [];
  const instead = found.filter(
    ({ family, table, destination }) =>
      family === route.family && table === route.table && destination === route.destination,
  );
  return [{ kind: 'route', what: routeName(route), route, instead }];
}

const ruleLoss = (rule: Rule): RoutingLoss => ({ kind: 'rule', what: ruleName(rule), rule });

export const ruleName = ({ priority, family }: Rule) => `policy rule ${priority} (${family})`;
export const routeName = ({ type, destination, table, family }: Route) =>
  `route ${type} ${destination} in table ${table} (${family})`;

// ---- the table ----------------------------------------------------------------------------------------------------------

/**
 * Its chains, sets and rules. What is in the sets may change while it lives. Rules are compared by what they do: rules
 * that somebody has added to our chains are a change, too.
 */
export async function findTableLosses({ nftables }: Kernel, plan: Plan): Promise<Loss[]> {
  const table = tableObject(plan);
  const name = `table inet ${table.name}`;
  const found = (await nftables.list('table')).find(({ family, name }) => family === 'inet' && name === table.name);
  if (!found) return [{ kind: 'table', what: name, gone: true }];
  const filter = { family: table.family, table: table.name };
  const [chains, sets, rules] = await Promise.all([
    nftables.list('chain', filter),
    nftables.list('set', filter),
    nftables.list('rule', filter),
  ]).catch((error) => {
    // Deleted in between.
    if (error instanceof NetlinkError && error.code === 'ENOENT')
      return [[], [], []] as [NftChain[], NftSet[], NftRule[]];
    throw error;
  });

  const wanted = <K extends NftObject['kind']>(kind: K) =>
    plan.nftables.flatMap(({ object }) => (object.kind === kind ? [object as Extract<NftObject, { kind: K }>] : []));
  const isThere = (object: NftChain | NftSet) => isAsPlanned(object, [...chains, ...sets]);
  const changed = [
    ...(canonical(found.flags ?? []) === canonical(table.flags ?? []) ? [] : ['its flags']),
    ...wanted('chain')
      .filter((chain) => !isThere(chain))
      .map((chain) => `chain ${chain.name}`),
    ...wanted('set')
      .filter((set) => set.name !== ANONYMOUS_SET && !isThere(set))
      .map((set) => `set ${set.name}`),
    ...wanted('chain')
      .filter((chain) => rulesOf(rules, chain.name) !== rulesOf(wanted('rule'), chain.name))
      .map((chain) => `rules of chain ${chain.name}`),
  ];
  return changed.length === 0 ? [] : [{ kind: 'table', what: `${name}: ${changed.join(', ')}`, gone: false }];
}

/** Whether what the kernel lists has this in it. */
export function isAsPlanned(object: NftChain | NftSet, found: readonly (NftChain | NftSet)[]): boolean {
  // What has only a meaning inside a batch, and what is only for nft's eyes.
  const { id: _, userdata: __, flags, ...rest } = object as NftSet;
  const named = { ...rest, ...(flags?.length && { flags }) };
  return found.some((each) => each.kind === object.kind && contains(each, named));
}

/** What the rules of a chain do, as text. */
function rulesOf(rules: readonly NftRule[], chain: string): string {
  return canonical(rules.filter((rule) => rule.chain === chain).map((rule) => rule.expressions.map(meaning)));
}

/** Without what changes by itself (counts) and what the kernel chooses (names of anonymous sets, ids for a batch alone). */
function meaning(expression: NftExpression): unknown {
  if (expression.kind === 'counter') return expression.kind;
  // The kernel tells a range of one port where none was given.
  if (expression.kind === 'redir') return { regProtoMax: expression.regProtoMin, ...expression };
  if (!('set' in expression)) return expression;
  const { setId: _, set, ...rest } = expression;
  return { ...rest, set: set.replace(/^__set\d+$/, ANONYMOUS_SET) };
}

// ---- comparing ----------------------------------------------------------------------------------------------------------

/** Whether `found` has every member of `wanted`, equal. */
function contains(found: object, wanted: object): boolean {
  return Object.entries(wanted).every(
    ([key, value]) => canonical((found as Record<string, unknown>)[key]) === canonical(value),
  );
}
