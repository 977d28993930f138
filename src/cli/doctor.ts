/** `linux-tproxy doctor`: why it would not work here, with the command that mends it. */
import type { Finding } from '../types.js';
import { json, netns, netnsOf } from './options.js';
import { print } from './output.js';
import type { Verb } from './verb.js';

export const doctor: Verb = {
  name: 'doctor',
  summary: 'tell why interception would not work here, and what mends it',
  options: [{ flag: 'all', help: 'Also what is in order.' }, netns, json],
  description: [
    'Looks at the privileges of whoever calls it; at what the kernel has of what the rules are made of; at the loopback interface, forwarding, policy rules and sysctls; at firewall rules of others that may drop what is intercepted; at what is installed, whether it is whole and somebody listens; and at what a relay may use of the kernel (io_uring, splice, pipes).',
    'FAIL is what keeps interception from working, WARN what may, or does so for some traffic. Each comes with the command that mends it. A firewall is followed as far as its rules can be known beforehand: where it may drop is told, also where a later rule lets in.',
    'What it says without CAP_NET_ADMIN is of this process alone: the kernel shows rules to nobody else.',
  ],
  changes: ['Nothing. A batch of rules is given to the kernel to be checked, and not committed.'],
  exitStatus: [['1', 'Also: something fails.']],
  examples: [
    ['Before anything else:', 'linux-tproxy doctor'],
    ['All that was looked at, for a machine:', 'linux-tproxy doctor --json'],
  ],
  seeAlso: ['linux-tproxy status', 'nft(8)', 'ip-rule(8)', 'sysctl(8)'],

  async run(values) {
    const { doctor: examine } = await import('../doctor/doctor.js');
    const findings = await examine(netnsOf(values));
    const shown = values['all'] === true ? findings : findings.filter(({ severity }) => severity !== 'ok');
    print(
      values,
      findings,
      shown.length > 0 ? shown.map(text).join('') : `Nothing is wrong (${findings.length} checks).\n`,
    );
    return findings.some(({ severity }) => severity === 'fail') ? 1 : 0;
  },
};

function text({ severity, summary, detail, fix }: Finding): string {
  const lines = [
    `${severity.toUpperCase().padEnd(4)}  ${summary}`,
    `      ${detail}`,
    ...(fix === undefined ? [] : [`      mend: ${fix}`]),
  ];
  return `${lines.join('\n')}\n`;
}
