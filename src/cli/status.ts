/** `linux-tproxy status`: what is installed, by whom, what it has counted, whether it is intact. */
import type { Installed, Leftovers } from '../intercept/installed.js';
import { json, netns, netnsOf } from './options.js';
import { leftoverWords, print, routingRows, rows } from './output.js';
import type { Verb } from './verb.js';

export const status: Verb = {
  name: 'status',
  summary: 'tell what is installed, its counters, and whether it is intact',
  options: [
    { flag: 'name', argument: 'NAME', help: 'Only this interception; it is a failure if there is none. Default: all.' },
    netns,
    json,
  ],
  description: [
    'Tells each interception in the network namespace, whoever installed it: by `linux-tproxy up` (permanent) or by a process, with its id and name; whether it outlives that process for the next one to take over (persists), and waits for that now (ORPHAN); where it delivers to; its mark, routing table and priorities; its ports and prefixes as they are now; what its rules have counted since they were installed.',
    "Intact is one whose table, rules, policy rules and routes are all there. What is missing (deleted by a firewall's reload, by systemd-networkd, by `ip rule flush`) is named; `linux-tproxy down` and `up` bring it back.",
  ],
  changes: ['Nothing. CAP_NET_ADMIN is needed all the same: the kernel shows nf_tables to nobody else.'],
  exitStatus: [['1', 'Also: something is not intact, or there is no interception of that name.']],
  examples: [
    ['What is there:', 'linux-tproxy status'],
    ['For a monitor:', 'linux-tproxy status --name 50080 --json'],
  ],
  seeAlso: ['linux-tproxy up', 'linux-tproxy down', 'nft(8)', 'ip-rule(8)'],

  async run(values) {
    const { listInstalled, ownerText } = await import('../intercept/installed.js');
    const { installed: all, leftovers } = await listInstalled(netnsOf(values));
    const name = values['name'];
    const installed = name === undefined ? all : all.filter((each) => each.name === name);
    const holder = ({ lifetime, owner }: Installed) =>
      owner === undefined
        ? lifetime === 'persist'
          ? 'ORPHAN (its process has ended and left it to the next one)'
          : 'permanent'
        : `${ownerText(owner)}${lifetime === 'persist' ? ', persists' : ''}`;
    const text = (each: Installed) => describe(each, holder(each));
    print(
      values,
      { installed, leftovers },
      [...installed.map(text), ...(installed.length ? [] : ['Nothing is installed.\n']), leftoverText(leftovers)].join(
        '',
      ),
    );
    const missed = name !== undefined && installed.length === 0;
    return missed || installed.some(({ intact }) => !intact) ? 1 : 0;
  },
};

function describe(installed: Installed, lifetime: string): string {
  const { name, intact, missing, onDown, sets, counters } = installed;
  return `${name}: ${lifetime}, ${intact ? 'intact' : 'NOT INTACT'}\n${rows([
    ...missing.map((what) => ['missing', what] as const),
    ...routingRows(installed),
    ['on down', onDown],
    ...Object.entries(sets)
      .filter(([, elements]) => elements.length > 0)
      .map(([set, elements]) => [set, abridged(elements)] as const),
    ...Object.entries(counters)
      .filter(([what, { packets }]) => what !== 'dropped' || onDown === 'closed' || packets > 0n)
      .map(([what, { packets, bytes }]) => [what, `${packets} packets, ${bytes} bytes`] as const),
  ])}`;
}

/** Sets may have thousands of elements: --json has them all. */
function abridged(elements: readonly string[]): string {
  const shown = elements.slice(0, 8).join(', ');
  return elements.length > 8 ? `${shown}, ... (${elements.length})` : shown;
}

function leftoverText(leftovers: Leftovers): string {
  const what = leftoverWords(leftovers);
  if (what === '') return '';
  // Chains in iptables' table go on, and drop what nobody listens for.
  const effect = leftovers.chains.length > 0 ? '' : ', of no effect';
  return `Left by a killed process${effect}: ${what}. Remove them with \`linux-tproxy down\`.\n`;
}
