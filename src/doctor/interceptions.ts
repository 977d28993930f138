/** Whether what is installed is whole, and somebody listens. */
import type { Installed } from '../intercept/installed.js';
import { isListening } from '../procfs.js';
import type { Finding } from '../types.js';
import { type Group, type Look, ok } from './look.js';

export const interceptions: Group = (look) => [
  ...look.installed.flatMap((each) => [whole(each), ...listener(each, look)]),
  ...leftovers(look),
];

function whole({ name, lifetime, owner, intact, missing }: Installed): Finding {
  const id = 'intact';
  if (intact)
    return ok(id, `interception ${name} is intact`, 'its table, rules, policy rules and routes are all there');
  const again = `linux-tproxy down --name ${name}, and linux-tproxy up again`;
  return {
    id,
    severity: 'fail',
    summary: `interception ${name} is not intact`,
    detail: `missing: ${missing.join(', ')}`,
    fix: lifetime === 'permanent' || !owner ? again : 'restart the process that installed it',
  };
}

function listener({ name, port, families, onDown, sets }: Installed, { netns }: Look): Finding[] {
  if (port === undefined) return [];
  const id = 'listener';
  return (['tcp', 'udp'] as const)
    .filter((protocol) => sets[`${protocol}_ports`])
    .map((protocol) => {
      const where = `${protocol.toUpperCase()} port ${port}`;
      if (isListening(protocol, port, netns))
        return ok(id, `somebody listens on ${where}`, `interception ${name} delivers there (${families.join(', ')})`);
      return {
        id,
        severity: 'fail',
        summary: `nobody listens on ${where}`,
        detail: `interception ${name} delivers there: what it matches ${onDown === 'closed' ? 'is dropped' : 'passes unproxied'} until somebody does`,
        fix: `start the proxy, with a socket that is transparent (IP_TRANSPARENT; Squid: http_port ${port} tproxy; HAProxy: bind :${port} transparent)`,
      };
    });
}

function leftovers({ leftovers: { chains, rules, routes } }: Look): Finding[] {
  if (chains.length + rules.length + routes.length === 0) return [];
  const drops = chains.length > 0;
  return [
    {
      id: 'leftovers',
      severity: drops ? 'fail' : 'warn',
      summary: `a killed process has left ${chains.length} chains, ${rules.length} policy rules, ${routes.length} routes`,
      detail: drops
        ? "chains in iptables' table mangle go on dropping what nobody listens for"
        : 'without the marks of their table they do nothing',
      fix: 'linux-tproxy down',
    },
  ];
}
