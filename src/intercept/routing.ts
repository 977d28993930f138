/**
 * The policy rules and routes that deliver what is marked, and the changes that make and remove them. Pure.
 */
import { unchecked } from '../netlink/check/schema.js';
import type { Route, RouteOperation, Rule } from '../netlink/types.js';
import { packAhead } from '../pack.js';
import type { Family } from '../types.js';
import { once } from './once.js';
import type { Plan } from './plan.js';
import { ownMark } from './ruleset.js';
import { LOOPBACK_INDEX } from './statement.js';

/** Tags our policy rules and routes as ours. iproute2 has no name for it, so `ip rule` shows the number. */
export const ROUTE_PROTOCOL = 84;
/** Policy rules take this many consecutive priorities. */
export const PRIORITIES = 4;

/** The policy rules and routes that deliver what is marked. */
export function routingOf(
  facts: Pick<Plan, 'fwmark' | 'table' | 'priority' | 'families'> & { readonly ownHost?: object | boolean },
): Pick<Plan, 'rules' | 'routes'> {
  const families = facts.fwmark.mask === 0 ? [] : facts.families;
  const rules: Rule[] = [];
  for (const family of families) rules.push(...policyRules(family, facts));
  return { routes: families.map((family) => localRoute(family, facts.table)), rules };
}

/** Everything routed by our table is delivered here. */
function localRoute(family: Family, table: number): Route {
  return { family, type: 'local', destination: 'default', dev: 'lo', table, scope: 'host', protocol: ROUTE_PROTOCOL };
}

/** The same with the number of its interface, for which the kernel would have to be asked. */
const byIndex = (route: Route): Route => ({ ...route, dev: LOOPBACK_INDEX });

/**
 * A packet with our mark is looked up in our table, except while `iif` is lo: that is how the kernel asks for the way
 * back of an arriving packet (source validation) and for the way of our own answers. With net.ipv4.conf.*.src_valid_mark=1
 * or net.ipv4.tcp_fwmark_accept=1 these questions carry the mark too, and a plain `fwmark` rule would answer them with
 * `local`: the packet is dropped as a martian, the answer never leaves. They jump to a `nop` of our own, so that all rules
 * of the administrator are still evaluated. What this host itself sends is asked for with `iif` lo too, so it has a mark
 * of its own.
 */
function policyRules(
  family: Family,
  {
    fwmark,
    table,
    priority,
    ownHost,
  }: Pick<Plan, 'fwmark' | 'table' | 'priority'> & { readonly ownHost?: object | boolean },
): Rule[] {
  const protocol = ROUTE_PROTOCOL;
  const end = priority + 3;
  const rules: Rule[] = [
    { family, fwmark, protocol, priority: priority + 1, iif: 'lo', action: 'goto', goto: end },
    { family, fwmark, protocol, priority: priority + 2, action: 'lookup', table },
    { family, fwmark, protocol, priority: end, action: 'nop' },
  ];
  if (!ownHost) return rules;
  const own = { value: ownMark({ fwmark }), mask: fwmark.mask };
  return [{ family, fwmark: own, protocol, priority, iif: 'lo', action: 'lookup', table }, ...rules];
}

type Routing = Pick<Plan, 'rules' | 'routes'>;
export const changesOf = (verb: 'add' | 'delete', { rules, routes }: Routing) => ({
  rules: unchecked(rules.map((rule): RouteOperation => ({ verb, kind: 'rule', rule }))),
  routes: unchecked(routes.map((route): RouteOperation => ({ verb, kind: 'route', route: byIndex(route) }))),
});

/** All of them, in the order in which they go. The guard is told of it too. */
export const removalOf = once((routing: Routing): readonly RouteOperation[] => {
  const { rules, routes } = changesOf('delete', routing);
  return packAhead(unchecked([...rules.reverse(), ...routes.reverse()]));
});
