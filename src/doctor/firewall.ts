/**
 * Which rules of others may drop what is intercepted. The proxy accepts packets whose destination is somebody else's, so to a
 * firewall's input chain they look like attempts at a port of this host. Rules are followed as far as they can be known:
 * what an intercepted packet surely is, and is not.
 */
import { letBridgesBe, lossyBridges, lossyBridgesText } from '../intercept/bridges.js';
import { word } from '../intercept/host.js';
import { fwmarkText } from '../intercept/nftables.js';
import type { NftChain, NftExpression, NftRule } from '../netlink/types.js';
import type { Finding, Fwmark } from '../types.js';
import { type Group, type Look, ok } from './look.js';

export const firewall: Group = (look) => [...input(look), ...bridges(look)];

function bridges({ links, netns }: Look): Finding[] {
  const lossy = lossyBridges(links, { netns, families: ['ipv4', 'ipv6'] });
  if (!lossy) return [];
  return [
    {
      id: 'bridge-netfilter',
      severity: 'fail',
      summary: `what comes from the ports of ${lossy.bridges.join(', ')} is lost`,
      detail: lossyBridgesText(lossy),
      fix: letBridgesBe(lossy),
    },
  ];
}

function input(look: Look): Finding[] {
  const bases = look.chains.filter(({ hook, family }) => hook === 'input' && ['inet', 'ip', 'ip6'].includes(family));
  const findings = bases.flatMap((base) => {
    const mark = look.marks.find((each) => typeof outcome(look, base, each) === 'object');
    const culprit = mark && outcome(look, base, mark);
    return mark && typeof culprit === 'object' ? [mayDrop(base, culprit, mark)] : [];
  });
  if (findings.length > 0) return findings;
  return [
    ok('firewall', 'no input chain drops what is intercepted', `${bases.length} chains at the hook input were read`),
  ];
}

/** Where it may be dropped: a rule, or the policy of the chain. */
interface Culprit {
  readonly chain: string;
  readonly handle?: bigint;
}

function mayDrop(base: NftChain, { chain, handle }: Culprit, mark: Fwmark): Finding {
  const name = `${base.family} ${base.table} ${base.name}`;
  const where = handle === undefined ? 'its policy is drop' : `rule ${handle} of chain ${chain}`;
  return {
    id: 'firewall',
    severity: 'warn',
    summary: `chain ${name} may drop what is intercepted: ${where}`,
    detail:
      'to this chain intercepted packets look like attempts at a port of this host: they must be let in. If what follows lets in all ports that are intercepted, nothing is wrong',
    fix: letIn(base, mark),
  };
}

function letIn({ family, table, name }: NftChain, mark: Fwmark): string {
  if (table === 'firewalld')
    return 'firewall-cmd --permanent --add-port=PORT/tcp (each port that is intercepted, in the zone of the clients); firewall-cmd --reload';
  // Tables of iptables must be left to iptables: what it has not written itself it cannot list.
  const isIptables = family !== 'inet' && ['filter', 'mangle', 'security'].includes(table) && name === 'INPUT';
  if (isIptables)
    return `${family === 'ip' ? 'iptables' : 'ip6tables'} -t ${table} -I INPUT -m mark --mark ${fwmarkText(mark)} -j ACCEPT`;
  const [value, mask] = [mark.value, mark.mask].map((number) => `0x${number.toString(16)}`);
  return `nft insert rule ${family} ${table} ${name} meta mark and ${mask} == ${value} accept`;
}

// ---- what becomes of a packet -------------------------------------------------------------------------------------------

type Outcome = 'accepted' | 'through' | Culprit;

function outcome(
  look: Look,
  { family, table, name, policy }: Pick<NftChain, 'family' | 'table' | 'name' | 'policy'>,
  mark: Fwmark,
): Outcome {
  const ofChain = look.nftRules.filter((rule) => rule.family === family && rule.table === table && rule.chain === name);
  for (const rule of ofChain) {
    const fits = matches(rule, mark);
    if (fits === 'never') continue;
    const [action, target] = actionOf(rule);
    if (action === 'drop') return { chain: name, ...(rule.handle !== undefined && { handle: rule.handle }) };
    if (action === 'accept' && fits === 'always') return 'accepted';
    if (action === 'return' && fits === 'always') break;
    if (action === 'jump' || action === 'goto') {
      const there = outcome(look, { family, table, name: target ?? '' }, mark);
      if (typeof there === 'object') return there;
      if (fits === 'always' && there === 'accepted') return there;
      if (fits === 'always' && action === 'goto') break;
    }
  }
  return policy === 'drop' ? { chain: name } : 'through';
}

function actionOf({ expressions }: NftRule): [action?: string | number, chain?: string] {
  const last = expressions.at(-1);
  if (last?.kind === 'verdict') return last.chain === undefined ? [last.verdict] : [last.verdict, last.chain];
  if ((last?.kind === 'target' || last?.kind === 'unknown') && last.name.toLowerCase() === 'reject') return ['drop'];
  return [];
}

/** Whether an intercepted packet fits all matches of a rule. */
function matches({ expressions }: NftRule, mark: Fwmark): 'always' | 'never' | 'maybe' {
  let sure = true;
  for (let at = 0; at < expressions.length; at++) {
    const [fits, length] = test(expressions.slice(at), mark);
    if (fits === false) return 'never';
    if (fits === undefined) sure = false;
    at += length - 1;
  }
  return sure ? 'always' : 'maybe';
}

/** The first of these: whether the packet fits (undefined: not known), and how many expressions it is made of. */
function test([first, ...rest]: readonly NftExpression[], mark: Fwmark): [fits: boolean | undefined, length: number] {
  if (!first) return [true, 1];
  const bitwise = rest[0]?.kind === 'bitwise' ? rest[0] : undefined;
  const cmp = rest[bitwise ? 1 : 0];
  const length = bitwise ? 3 : 2;
  if (first.kind === 'meta' && cmp?.kind === 'cmp') {
    const equal = cmp.op === 'eq';
    if (first.key === 'mark') {
      const fits = fitsMark(
        mark,
        bitwise ? word(bitwise.mask) : 0xffffffff,
        bitwise ? word(bitwise.xor) : 0,
        word(cmp.data),
      );
      return [fits === undefined ? undefined : fits === equal, length];
    }
    // What is intercepted comes from outside.
    if (first.key === 'iifname' && Buffer.from(cmp.data).toString().replace(/\0+$/, '') === 'lo')
      return [!equal, length];
    return [undefined, length];
  }
  if (first.kind === 'ct' && first.key === 'state' && bitwise && cmp?.kind === 'cmp' && word(cmp.data) === 0) {
    // Nothing of it is invalid: the connection ends here.
    return [(word(bitwise.mask) & ~INVALID) === 0 ? cmp.op === 'eq' : undefined, length];
  }
  if (first.kind === 'match' && first.name === 'mark') {
    const fits = fitsMark(mark, word(first.info, 4), 0, word(first.info));
    return [fits === undefined ? undefined : fits !== (first.info[8] === 1), 1];
  }
  if (first.kind === 'match' && first.name === 'conntrack' && isOnlyInvalid(first.info)) return [false, 1];
  const says =
    first.kind === 'counter' ||
    first.kind === 'verdict' ||
    first.kind === 'target' ||
    ('name' in first && WORDLESS.test(first.name));
  return [says ? true : undefined, 1];
}
/** They look at nothing. */
const WORDLESS = /^(comment|log|reject|notrack)$/i;
/** NF_CT_STATE_INVALID_BIT. */
const INVALID = 1;

/** Undefined where bits are asked for that are not ours to know. */
function fitsMark({ value, mask }: Fwmark, asked: number, xor: number, wanted: number): boolean | undefined {
  if ((((value & asked) ^ xor ^ wanted) & mask & asked) !== 0) return false;
  return (asked & ~mask) === 0 ? true : undefined;
}

/** struct xt_conntrack_mtinfo3 of linux/netfilter/xt_conntrack.h, of which only the state is asked for. */
function isOnlyInvalid(info: Uint8Array): boolean {
  const at = { matchFlags: 148, invertFlags: 150, stateMask: 152 };
  const read = (offset: number) => new Uint16Array(info.slice(offset, offset + 2).buffer)[0];
  if (info.length < at.stateMask + 2) return false;
  return read(at.matchFlags) === 1 && read(at.invertFlags) === 0 && read(at.stateMask) === INVALID;
}
