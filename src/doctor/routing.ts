/** What on the way of a packet through policy routing and interfaces keeps interception from working. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { isUp } from '../intercept/host.js';
import { ROUTE_PROTOCOL } from '../intercept/routing.js';
import { sysctls } from '../procfs.js';
import type { Finding } from '../types.js';
import { type Group, type Look, ok } from './look.js';

export const routing: Group = (look) => [
  loopback(look),
  ...families(look),
  forwarding(look),
  ...sourceMarks(look),
  ...networkd(look),
];

function loopback({ links }: Look): Finding {
  const id = 'loopback';
  const lo = links.find(({ name }) => name === 'lo');
  if (lo && isUp(lo)) return ok(id, 'the loopback interface is up', 'intercepted packets are delivered through it');
  return {
    id,
    severity: 'fail',
    summary: 'the loopback interface is down',
    detail: 'intercepted packets are delivered through it, and so are none',
    fix: 'ip link set lo up',
  };
}

function families({ netns }: Look): Finding[] {
  const [all, lo] = sysctls(netns, ['net/ipv6/conf/all/disable_ipv6', 'net/ipv6/conf/lo/disable_ipv6']);
  const id = 'ipv6';
  if (lo === 0) return [ok(id, 'IPv6 is enabled', 'both families are intercepted')];
  return [
    {
      id,
      severity: 'warn',
      summary: 'IPv6 is disabled',
      detail: 'only IPv4 is intercepted; IPv6 of other hosts that is routed here all the same goes past the proxy',
      ...(lo !== undefined && { fix: `sysctl -w net.ipv6.conf.${all === 1 ? 'all' : 'lo'}.disable_ipv6=0` }),
    },
  ];
}

function forwarding({ netns }: Look): Finding {
  const names = ['net/ipv4/ip_forward', 'net/ipv6/conf/all/forwarding'];
  const values = sysctls(netns, names);
  const off = names.filter((_, index) => values[index] === 0);
  const id = 'forwarding';
  if (off.length === 0) return ok(id, 'this host forwards', 'what is not intercepted goes on to where it was meant');
  return {
    id,
    severity: 'warn',
    summary: `this host does not forward (${off.map(dotted).join(', ')} is 0)`,
    detail:
      'what is intercepted reaches the proxy all the same; what is not (other ports, exclusions, all of it while nobody listens) is lost. It does not matter where only this host itself is intercepted',
    fix: off.map((name) => `sysctl -w ${dotted(name)}=1`).join('; '),
  };
}

const dotted = (name: string) => name.replaceAll('/', '.');

/**
 * The recipe of the wikis, `fwmark 1 lookup 100`, dies of src_valid_mark=1, which VPNs set: the source of a marked packet is
 * then looked up by its mark too, where only the route to this host itself is. net/ipv4/fib_frontend.c, __fib_validate_source.
 */
function sourceMarks({ netns, rules, routes, links }: Look): Finding[] {
  const names = ['all', ...links.map(({ name }) => name)];
  const values = sysctls(
    netns,
    names.map((name) => `net/ipv4/conf/${name}/src_valid_mark`),
  );
  const set = names.filter((_, index) => values[index] === 1);
  if (set.length === 0) return [];
  const local = routes.filter(({ type, protocol }) => type === 'local' && protocol !== ROUTE_PROTOCOL);
  const dead = rules.filter(
    ({ family, fwmark, action, table, protocol, iif }) =>
      family === 'ipv4' &&
      fwmark &&
      action === 'lookup' &&
      protocol !== ROUTE_PROTOCOL &&
      iif === undefined &&
      local.some((route) => route.family === family && route.table === table && route.destination === 'default'),
  );
  const id = 'src-valid-mark';
  const where = set.map((name) => `net.ipv4.conf.${name}.src_valid_mark`);
  if (dead.length === 0)
    return [
      ok(id, `${where.join(', ')} is 1`, 'the rules of this package do not mind; others would lose every packet'),
    ];
  return [
    {
      id,
      severity: 'fail',
      summary: `${where.join(', ')} is 1, and kills ${dead.map(({ priority, table }) => `policy rule ${priority} (lookup ${table})`).join(', ')}`,
      detail:
        'the source address of a marked packet is looked up by its mark, finds only the local route, and the packet is dropped without a log. Those rules are not of this package, whose layout is immune',
      fix: where.map((name) => `sysctl -w ${name}=0`).join('; '),
    },
  ];
}

/** It manages the namespace it runs in. */
function networkd({ netns }: Look): Finding[] {
  if (netns !== undefined || !existsSync('/run/systemd/netif/state')) return [];
  const id = 'networkd';
  const text = networkdFiles()
    .map((file) => readFileSync(file, 'utf8'))
    .join('\n');
  const keeps = (option: string) => new RegExp(`^\\s*${option}\\s*=\\s*(no|false|off|0)\\s*$`, 'im').test(text);
  const missing = ['ManageForeignRoutingPolicyRules', 'ManageForeignRoutes'].filter((option) => !keeps(option));
  if (missing.length === 0)
    return [ok(id, 'systemd-networkd leaves the rules of others alone', 'as networkd.conf says')];
  return [
    {
      id,
      severity: 'warn',
      summary: 'systemd-networkd deletes policy rules and routes of others when it restarts',
      detail:
        'a process that installed ours puts them back within 100 ms; those of `linux-tproxy up` nobody looks after',
      fix: `mkdir -p /etc/systemd/networkd.conf.d; printf '[Network]\\n${missing.map((option) => `${option}=no\\n`).join('')}' > /etc/systemd/networkd.conf.d/linux-tproxy.conf; systemctl restart systemd-networkd`,
    },
  ];
}

function networkdFiles(): string[] {
  return ['/usr/lib', '/etc', '/run'].flatMap((root) => {
    const main = `${root}/systemd/networkd.conf`;
    const more = `${main}.d`;
    return [
      ...(existsSync(main) ? [main] : []),
      ...(existsSync(more)
        ? readdirSync(more)
            .filter((name) => name.endsWith('.conf'))
            .map((name) => `${more}/${name}`)
        : []),
    ];
  });
}
