/** The two backends, of which every test of what rules do is a test, and what one of them cannot express. */
import type { Plan } from '../../src/index.js';
import { hostile } from './proxies.js';

export type Backend = Plan['backend'];
export const backends: readonly Backend[] = ['nftables', 'iptables'];

/** Each with the default sysctls, and with everything at once that breaks the usual recipe. */
export const everywhere = backends.flatMap((backend) =>
  Object.entries({ default: {}, hostile }).map(([name, sysctls]) => ({ backend, name, sysctls })),
);

/** What the iptables backend cannot express, and why. */
const beyondIptables = {
  'onDown open': 'TPROXY drops what nobody listens for',
  'what is dropped is counted apart': 'it is the same rule that delivers and that drops',
  'elements that expire': 'its rules do not',
  'an owned table': 'chains of a table that is not ours have no owner',
  'redirect mode': 'it is there for hosts without TPROXY; iptables has a REDIRECT of its own',
  'a conntrack zone': 'the CT target sets one in table raw, where there is no match on sockets',
} as const;

export const expresses = (backend: Backend, what: keyof typeof beyondIptables): boolean =>
  backend === 'nftables' || !(what in beyondIptables);
