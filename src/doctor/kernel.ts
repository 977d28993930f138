/** What this kernel has of what the rules are made of. Asked of itself, by a batch that is validated and never committed. */
import { NetlinkError } from '../errors.js';
import type { Kernel } from '../intercept/kernel.js';
import { type PlanOptions, planIntercept } from '../intercept/plan.js';
import type { Finding } from '../types.js';
import { ok } from './look.js';

/** No table has this name: it would be refused for that. */
const name = `doctor-${process.pid}`;
const plans: readonly (readonly [id: string, what: string, without: string, options: Partial<PlanOptions>])[] = [
  ['tproxy', 'TPROXY rules', "`mode: 'redirect'` needs less of the kernel", {}],
  [
    'persist',
    "rules that outlive their process (`lifetime: 'persist'`)",
    'they need Linux 6.9',
    { lifetime: 'persist' },
  ],
  ['redirect', "REDIRECT rules (`mode: 'redirect'`)", 'TPROXY does not need them', { mode: 'redirect' }],
  [
    'iptables',
    "the rules of `backend: 'iptables'`",
    'the default backend does not need them',
    { backend: 'iptables', name: `doc${process.pid % 10_000}`, lifetime: 'permanent' },
  ],
];

export async function kernelFindings({ nftables }: Kernel): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const [id, what, without, options] of plans) {
    const plan = planIntercept({ port: 1, tcp: [1], name, onDown: 'closed', ...options });
    const refusal = await nftables.commit(plan.nftables, { dryRun: true }).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (refusal !== undefined && !(refusal instanceof NetlinkError)) throw refusal;
    findings.push(
      refusal
        ? {
            id,
            severity: id === 'tproxy' ? 'fail' : 'warn',
            summary: `this kernel has not all that ${what} need`,
            detail: `${refusal.message} (${without})`,
          }
        : ok(id, `this kernel has all that ${what} need`, 'a batch of them was validated, and not committed'),
    );
  }
  return findings;
}
