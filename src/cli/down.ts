/** `linux-tproxy down`: takes down what `up` installed, and what killed processes have left. */
import { usageError } from '../errors.js';
import type { Installed, Leftovers } from '../intercept/installed.js';
import { json, netns, netnsOf } from './options.js';
import { leftoverWords, print } from './output.js';
import type { Verb } from './verb.js';

export const down: Verb = {
  name: 'down',
  summary: 'take down what `up` installed',
  options: [
    { flag: 'name', argument: 'NAME', help: 'Which interception. Default: the only one there is.' },
    { flag: 'all', help: 'All that `up` installed.' },
    netns,
    json,
  ],
  description: [
    "Removes the nf_tables table (or the chains in iptables' table mangle), then the policy rules, then the routes. Afterwards the host is as it was before `up`. Connections through the proxy that are open lose it; all others go on.",
    'Also removes the policy rules and routes of processes that were killed, whatever their name: without the marks of their table, which the kernel deleted with them, they do nothing, but are in the way of reading `ip rule`.',
    'An interception of a process that runs (`linux-tproxy run`, a proxy made with the Node package) is never taken down: end the process. What a process has left to the next one is. That nothing is there to take down is no error.',
  ],
  changes: [
    'Tables inet linux-tproxy-NAME that belong to no process; chains linux-tproxy-NAME in the tables mangle; policy rules and routes marked `proto 84` that belong to them or to no table.',
  ],
  examples: [
    ['The only one:', 'linux-tproxy down'],
    ['Everything in a network namespace:', 'linux-tproxy down --all --netns router'],
  ],
  seeAlso: ['linux-tproxy up', 'linux-tproxy status'],

  async run(values) {
    if (values['name'] !== undefined && values['all'] === true) throw usageError('either --name or --all, not both');
    const { listInstalled, ownerText, uninstallIntercept } = await import('../intercept/installed.js');
    const { installed, leftovers } = await listInstalled(netnsOf(values));
    const names = chosen(installed, values['name'] as string | undefined, values['all'] === true);
    const down: string[] = [];
    for (const name of names) if (await uninstallIntercept({ ...netnsOf(values), name })) down.push(name);
    if (names.length === 0) await uninstallIntercept(netnsOf(values));
    print(
      values,
      { down, leftovers: { chains: leftovers.chains, rules: leftovers.rules.length, routes: leftovers.routes.length } },
      [
        ...down.map((name) => `${name}: down`),
        ...leftoverLines(leftovers),
        ...(down.length ? [] : [nothing(values['name'] === undefined ? [] : installed)]),
      ]
        .map((line) => `${line}\n`)
        .join(''),
    );
    const kept = values['all'] === true ? installed.filter(({ owner }) => owner) : [];
    for (const { name, owner } of kept)
      if (owner)
        console.error(`linux-tproxy down: ${name} is left: it belongs to ${ownerText(owner)}, which is running`);
    return kept.length > 0 ? 1 : 0;
  },
};

function chosen(installed: readonly Installed[], name: string | undefined, all: boolean): string[] {
  if (name !== undefined) return [name];
  const permanent = installed.filter(({ owner }) => !owner).map((each) => each.name);
  if (all || permanent.length === 1) return permanent;
  if (permanent.length > 1) throw usageError(`there are ${permanent.join(', ')}: say which by --name, or --all`);
  // The only one belongs to a process: to be told so is better than "nothing".
  return installed.length === 1 ? installed.map((each) => each.name) : [];
}

/** A name may be misspelt. */
function nothing(installed: readonly Installed[]): string {
  const names = installed.map(({ name }) => name).join(', ');
  return names === '' ? 'Nothing to take down.' : `Nothing to take down by that name; there is ${names}.`;
}

function leftoverLines(leftovers: Leftovers): string[] {
  const what = leftoverWords(leftovers);
  return what === '' ? [] : [`Removed what a killed process had left: ${what}.`];
}
