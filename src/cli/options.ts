/**
 * The options of the command. A new option of an interception is one row of `interceptOptions`: the command line, the help
 * and the completion of up, plan and run follow. Pure.
 */
import { parseArgs } from 'node:util';
import { usageError } from '../errors.js';
import type { PlanOptions } from '../intercept/plan.js';
import type { Option, Values, Verb } from './verb.js';

export const help: Option = { flag: 'help', short: 'h', help: 'Shows this text.' };

export const json: Option = {
  flag: 'json',
  help: 'Prints one JSON document instead of text. Errors stay one line of text on stderr.',
};

export const netns: Option = {
  flag: 'netns',
  argument: 'PATH',
  help: 'The network namespace to work in: a path such as /run/netns/router, or a name known to `ip netns`. Default: the one this command runs in.',
  complete: 'netns',
};

/** Where the value goes in InterceptOptions, and how it is read. */
interface InterceptOption extends Option {
  readonly key: string;
  readonly read: (texts: readonly string[]) => unknown;
}

const text: InterceptOption['read'] = ([first]) => first;
const list: InterceptOption['read'] = (texts) => texts;
const portsOrAll: InterceptOption['read'] = (texts) => (texts.includes('all') ? true : texts);
const number: InterceptOption['read'] = ([first = '']) => toNumber(first);
const mark: InterceptOption['read'] = ([first = '']) => {
  const [value = '', mask, ...rest] = first.split('/');
  if (mask === undefined || rest.length > 0) throw usageError(`--mark must be VALUE/MASK, as 0x1/0x3, not '${first}'`);
  return { value: toNumber(value), mask: toNumber(mask) };
};
/** What is no number stays text, which planIntercept refuses by name. */
export const toNumber = (digits: string) => (/^(\d+|0x[0-9a-f]+)$/i.test(digits) ? Number(digits) : digits);

export const interceptOptions: readonly InterceptOption[] = [
  {
    flag: 'to-port',
    argument: 'PORT',
    key: 'port',
    read: number,
    required: true,
    help: 'The TCP port where the proxy listens, with IP_TRANSPARENT set on its socket. From 1 to 65535.',
  },
  {
    flag: 'tcp',
    argument: 'PORTS',
    key: 'tcp',
    read: portsOrAll,
    list: true,
    help: 'TCP destination ports to intercept: numbers, ranges like 8000-8999, or the word all. Default: none, which leaves only what belongs to transparent sockets being delivered to them.',
  },
  {
    flag: 'udp',
    argument: 'PORTS',
    key: 'udp',
    read: portsOrAll,
    list: true,
    help: 'UDP destination ports to intercept, likewise.',
  },
  {
    flag: 'from',
    argument: 'PREFIX',
    key: 'from',
    read: list,
    list: true,
    help: 'Only what comes from these addresses or prefixes, IPv4 and IPv6 mixed. A family without any is then not intercepted. Default: from everywhere.',
  },
  {
    flag: 'to',
    argument: 'PREFIX',
    key: 'to',
    read: list,
    list: true,
    help: 'Only what goes to these addresses or prefixes, IPv4 and IPv6 mixed. A family without any is then not intercepted. Default: to everywhere but this host.',
  },
  {
    flag: 'exclude-from',
    argument: 'PREFIX',
    key: 'exclude.from',
    read: list,
    list: true,
    help: 'Never what comes from these addresses or prefixes.',
  },
  {
    flag: 'exclude-to',
    argument: 'PREFIX',
    key: 'exclude.to',
    read: list,
    list: true,
    help: 'Never what goes to these addresses or prefixes.',
  },
  {
    flag: 'interface',
    argument: 'IF',
    key: 'interfaces',
    read: list,
    list: true,
    help: 'Only what comes in by these interfaces, which must exist. Default: by all but lo, those that appear later included.',
    complete: 'interface',
  },
  {
    flag: 'own-host',
    key: 'ownHost',
    read: () => true,
    help: 'Also what this host itself sends. What the proxy itself sends must carry the mark of the mask (SO_MARK, 0x3 of 0x1/0x3), or it would be intercepted, for ever; or be kept out by --own-user, --own-cgroup or --exclude-to.',
  },
  {
    flag: 'own-user',
    argument: 'USER',
    key: 'ownHost.users',
    read: list,
    list: true,
    help: 'Also what these users of this host send, by name or number.',
  },
  {
    flag: 'own-cgroup',
    argument: 'PATH',
    key: 'ownHost.cgroups',
    read: list,
    list: true,
    help: 'Also what is sent from these cgroups (v2) of this host and those below, as system.slice/x.service.',
  },
  {
    flag: 'family',
    argument: 'FAMILY',
    key: 'families',
    read: list,
    list: true,
    help: 'ipv4 or ipv6 alone. Default: both, or IPv4 where IPv6 is disabled.',
    complete: ['ipv4', 'ipv6'],
  },
  {
    flag: 'on-address',
    argument: 'ADDRESS',
    key: 'address',
    read: text,
    help: 'The address where the proxy listens, if it is one only (such as 127.0.0.1). Only its family is intercepted. Default: any.',
  },
  {
    flag: 'mode',
    argument: 'MODE',
    key: 'mode',
    read: text,
    help: 'tproxy, or redirect: nat REDIRECT, for hosts without TPROXY. The proxy then asks SO_ORIGINAL_DST, listens on every address, and connects from its own; TCP only. Default: tproxy.',
    complete: ['tproxy', 'redirect'],
  },
  {
    flag: 'zone',
    argument: 'ZONE',
    key: 'zone',
    read: number,
    help: 'A conntrack zone for the side of the clients, 1 to 65535, or auto (84 where the rules of this host use conntrack): for a proxy that connects from the very port of its client. Default: none.',
    complete: ['auto'],
  },
  {
    flag: 'on-down',
    argument: 'WHAT',
    key: 'onDown',
    read: text,
    help: 'What happens to matching traffic while nobody listens: open lets it pass unproxied, closed drops it. Default: open; closed with --backend iptables and --mode redirect, which cannot let it pass.',
    complete: ['open', 'closed'],
  },
  {
    flag: 'name',
    argument: 'NAME',
    key: 'name',
    read: text,
    help: 'Name of the interception. Its nf_tables table is inet linux-tproxy-NAME. Letters, digits, `_`, `.` and `-`, at most 64, with --backend iptables at most 8. Default: the port.',
  },
  {
    flag: 'backend',
    argument: 'BACKEND',
    key: 'backend',
    read: text,
    help: 'Where the rules are: nftables, in a table of their own (the default), or iptables, in chains of their own in the table mangle, for hosts that iptables (its nft variant) manages: `iptables -t mangle -S` lists them, and `iptables-save` saves them.',
    complete: ['nftables', 'iptables'],
  },
  {
    flag: 'mark',
    argument: 'VALUE/MASK',
    key: 'fwmark',
    read: mark,
    help: 'Two mark bits for it alone, and the value in them that means "deliver here", as 0x1/0x3. Default: bits that nobody on this host uses, 0x1/0x3 if they are free.',
  },
  {
    flag: 'table',
    argument: 'NUMBER',
    key: 'table',
    read: number,
    help: 'Number of a routing table for it alone. Default: the first from 100 that is empty.',
  },
  {
    flag: 'priority',
    argument: 'NUMBER',
    key: 'priority',
    read: number,
    help: 'First of four consecutive policy rule priorities for it alone. Default: 97, or the nearest free place.',
  },
];

/** The values of a command line as planIntercept and installIntercept take them; what cannot be meant they refuse. */
export function toInterceptOptions(values: Values): PlanOptions {
  const options: Record<string, unknown> = {};
  for (const { flag, key, read } of interceptOptions) {
    const given = values[flag];
    if (given === undefined) continue;
    const value = read(given === true ? [] : typeof given === 'string' ? [given] : given);
    const [outer = '', inner] = key.split('.');
    options[outer] = inner === undefined ? value : { ...(options[outer] as object | undefined), [inner]: value };
  }
  return options as unknown as PlanOptions;
}

/** planIntercept speaks of `port` and `exclude.to`; who typed it knows it as --to-port and --exclude-to. */
export function inTermsOfFlags(message: string, options: readonly Option[] = interceptOptions): string {
  for (const { key, flag } of options)
    if (key !== undefined && message.startsWith(key) && /^[ :.]/.test(message.slice(key.length)))
      return `--${flag}${message.slice(key.length)}`;
  return message;
}

/** `{ netns }` for the functions of the package; a name is one that `ip netns` knows. */
export function netnsOf(values: Values): { netns?: string } {
  const path = values['netns'];
  if (typeof path !== 'string') return {};
  return { netns: path.includes('/') ? path : `/run/netns/${path}` };
}

export function seconds(values: Values, flag: string): number | undefined {
  const text = values[flag] as string | undefined;
  if (text === undefined) return undefined;
  if (!/^\d+(\.\d+)?$/.test(text) || Number(text) === 0 || Number(text) > 2 ** 31 / 1000)
    throw usageError(`--${flag} must be a number of seconds, not '${text}'`);
  return Number(text);
}

export function milliseconds(values: Values, flag: string): number | undefined {
  const given = seconds(values, flag);
  return given === undefined ? undefined : Math.ceil(given * 1000);
}

/** Reads what follows the verb. Throws TypeErrors with a code, as parseArgs does. */
export function readCommandLine(verb: Verb, args: readonly string[]): { values: Values; operands: readonly string[] } {
  // Behind `--` stands a command with options of its own.
  const takesCommand = verb.operands?.kind === 'command';
  const end = takesCommand && args.includes('--') ? args.indexOf('--') : args.length;
  const { values, positionals } = parseArgs({
    args: args.slice(0, end),
    allowPositionals: verb.operands !== undefined && !takesCommand,
    options: Object.fromEntries(
      [...verb.options, help].map(({ flag, short, argument, list }) => [
        flag,
        {
          type: argument === undefined ? ('boolean' as const) : ('string' as const),
          multiple: list === true,
          ...(short !== undefined && { short }),
        },
      ]),
    ),
  });
  const read = Object.fromEntries(
    Object.entries(values).map(([flag, value]) => [
      flag,
      Array.isArray(value) ? value.flatMap((each) => String(each).split(',')) : value,
    ]),
  ) as Values;
  if (read['help'] !== true)
    for (const { flag, argument, required } of verb.options)
      if (required && read[flag] === undefined) throw usageError(`--${flag} ${argument} is missing`);
  return { values: read, operands: takesCommand ? args.slice(end + 1) : positionals };
}
