/** Plan -> the equal `ip`, `nft` and `iptables` commands, as a shell script that does what `installIntercept` does. Pure. */
import type { Route, Rule } from '../netlink/types.js';
import type { Family } from '../types.js';
import { iptablesChains } from './iptables.js';
import type { SetOfRules } from './named-sets.js';
import { claimOfPlan, fwmarkText } from './nftables.js';
import type { Plan } from './plan.js';
import { type ChainOfRules, ruleSet } from './ruleset.js';

const ipFlag = { ipv4: '-4', ipv6: '-6' } as const;

export function planText(plan: Plan): string {
  return [
    ...plan.routes.map(routeCommand),
    ...plan.rules.map(ruleCommand),
    "nft -f - <<'EOF'",
    plan.backend === 'iptables' ? claimTable(plan) : nftText(plan),
    'EOF',
    ...(plan.backend === 'iptables' ? plan.families.flatMap((family) => iptablesCommand(plan, family)) : []),
    '',
  ].join('\n');
}

function routeCommand(route: Route): string {
  const words = ['ip', ipFlag[route.family], 'route add', route.type, route.destination];
  if (route.dev !== undefined) words.push('dev', route.dev);
  words.push('table', String(route.table));
  if (route.protocol !== undefined) words.push('protocol', String(route.protocol));
  return words.join(' ');
}

function ruleCommand(rule: Rule): string {
  const words = ['ip', ipFlag[rule.family], 'rule add'];
  if (rule.iif !== undefined) words.push('iif', rule.iif);
  if (rule.fwmark !== undefined) words.push('fwmark', fwmarkText(rule.fwmark));
  words.push(String(rule.action));
  if (rule.action === 'lookup') words.push(String(rule.table));
  if (rule.action === 'goto') words.push(String(rule.goto));
  words.push('priority', String(rule.priority));
  if (rule.protocol !== undefined) words.push('protocol', String(rule.protocol));
  return words.join(' ');
}

const OWNER: Record<Plan['lifetime'], readonly string[]> = {
  process: ['\t# flags owner: it dies with the process that made it'],
  persist: ['\t# flags owner, persist: only its process changes it, and leaves it to the next one'],
  permanent: [],
};

/** The table as `nft -f` reads it. An owner's table lives as long as the owner's socket, which no shell command has: it is left out. */
export function nftText(plan: Plan): string {
  const { sets, chains } = ruleSet(plan);
  const owner = OWNER[plan.lifetime];
  return [
    `table inet ${plan.nftTable} {`,
    `\tcomment "${claimOfPlan(plan)}"`,
    ...owner,
    ...sets.flatMap(setText),
    ...chains.flatMap(chainText),
    '}',
  ].join('\n');
}

/** With backend `iptables` the table is empty: only the claim. */
const claimTable = (plan: Plan) => `table inet ${plan.nftTable} {\n\tcomment "${claimOfPlan(plan)}"\n}`;

const restore = { ipv4: 'iptables-nft-restore', ipv6: 'ip6tables-nft-restore' } as const;

const iptablesCommand = (plan: Plan, family: Family) => [
  `${restore[family]} --noflush <<'EOF'`,
  iptablesText(plan, family),
  'EOF',
];

/** What is put into the table `mangle`, as iptables-nft-restore reads it and iptables-nft-save writes it. */
export function iptablesText(plan: Plan, family: Family): string {
  const chains = iptablesChains(plan, family);
  return [
    '*mangle',
    ...chains.map(({ name }) => `:${name} - [0:0]`),
    ...chains.flatMap(({ name, from }) =>
      from ? [`${from.at === 'end' ? '-A' : '-I'} ${from.chain} -j ${name}`] : [],
    ),
    ...chains.flatMap(({ name, rules }) =>
      rules.map(({ matches, target }) =>
        [`-A ${name}`, ...matches.map(({ text }) => text), target?.text].filter(Boolean).join(' '),
      ),
    ),
    'COMMIT',
  ].join('\n');
}

function setText({ declaration: set, elementTexts }: SetOfRules): string[] {
  const lines = [`type ${set.type.join(' . ')}`];
  if (set.size !== undefined) lines.push(`size ${set.size}`);
  if (set.flags.length > 0) lines.push(`flags ${set.flags.join(',')}`);
  if (set.timeoutSeconds !== undefined) lines.push(`timeout ${set.timeoutSeconds}s`);
  if (set.flags.includes('interval')) lines.push('auto-merge');
  const elements = elementTexts();
  if (elements.length > 0) lines.push(`elements = { ${elements.join(', ')} }`);
  return block(`set ${set.name}`, lines);
}

function chainText({ name, base, rules }: ChainOfRules): string[] {
  const head = base ? [`type ${base.type} hook ${base.hook} priority ${base.priority.name}; policy accept;`] : [];
  const lines = rules.map(({ statements, comment }) =>
    [...statements.map(({ text }) => text), ...(comment === undefined ? [] : [`comment "${comment}"`])].join(' '),
  );
  return block(`chain ${name}`, [...head, ...lines]);
}

const block = (head: string, lines: readonly string[]) => [`\t${head} {`, ...lines.map((line) => `\t\t${line}`), '\t}'];
