/** The help texts, laid out as manual pages are: verbs say what, this says where on the page. Pure. */
import { help } from './options.js';
import type { Option, Verb } from './verb.js';

const WIDTH = 80;
const INDENT = 7;

export function verbHelp(verb: Verb): string {
  return page([
    ['NAME', [`linux-tproxy ${verb.name} - ${verb.summary}`]],
    ['SYNOPSIS', [synopsis(verb)]],
    ['DESCRIPTION', verb.description],
    ['OPTIONS', [...verb.options, help].map(optionText)],
    ['WHAT IS CHANGED', verb.changes],
    ['EXIT STATUS', [definitions([...EXIT_STATUS, ...(verb.exitStatus ?? [])])]],
    ['EXAMPLES', verb.examples.map(([what, command]) => `${fill(what)}\n\n${indent(command, 4)}`)],
    ['SEE ALSO', [verb.seeAlso.join(', ')]],
  ]);
}

export function commandHelp(verbs: readonly Verb[]): string {
  return page([
    ['NAME', ['linux-tproxy - transparent proxying: rules in the kernel, for any proxy']],
    ['SYNOPSIS', ['linux-tproxy VERB [OPTION]...\nlinux-tproxy VERB --help\nlinux-tproxy --help | --version']],
    [
      'DESCRIPTION',
      [
        'Makes the kernel hand connections that were meant for others to a proxy on this host (TPROXY), and the answers to connections that the proxy makes from foreign addresses. The proxy can be any that listens with IP_TRANSPARENT: Squid (http_port ... tproxy), HAProxy (bind ... transparent), Envoy, or one made with the Node package of the same name.',
        'Nothing is shelled out: rules and routes are told to the kernel over netlink.',
      ],
    ],
    ['VERBS', [definitions(verbs.map(({ name, summary }) => [name, sentence(summary)]))]],
    ['EXIT STATUS', [definitions(EXIT_STATUS)]],
    [
      'WHAT IS CHANGED',
      [
        "For each interception one nf_tables table of its own, inet linux-tproxy-NAME; in each family three or four policy rules (`ip rule`) and one route in a routing table of its own, both marked `proto 84`. Nobody else's table, chain, rule, route or sysctl is touched, and nothing is written to any file. Nothing outlives a reboot.",
        'CAP_NET_ADMIN in the network namespace is needed by all verbs but plan, doctor (which says less without) and completion.',
      ],
    ],
    [
      'EXAMPLES',
      [
        `${fill('Squid on port 50080 gets what is meant for port 80:')}\n\n${indent('linux-tproxy up --to-port 50080 --tcp 80\nlinux-tproxy status\nlinux-tproxy down', 4)}`,
      ],
    ],
    ['SEE ALSO', ['nft(8), ip-rule(8), ip-route(8), ip-netns(8), nsenter(1), ip(7) (IP_TRANSPARENT)']],
  ]);
}

/** One line: the options that must be, the place of the others, and the operands. */
export function usage(verb: Verb): string {
  const required = verb.options
    .filter((option) => option.required)
    .map((option) => `--${option.flag} ${option.argument}`);
  return ['linux-tproxy', verb.name, ...required, '[OPTION]...', verb.operands?.synopsis].filter(Boolean).join(' ');
}

/** The first sentence of a help text, without its full stop. */
export function firstSentence(text: string): string {
  return text.replace(/[.:;](\s.*)?$/s, '').replace(/\. .*$/s, '');
}

const EXIT_STATUS = [
  ['0', 'Success.'],
  ['1', 'It failed; one line on stderr says why, and what can be done.'],
  ['2', 'The command line cannot be understood.'],
] as const;

function synopsis(verb: Verb): string {
  const words = verb.options.map(({ flag, argument, list, required }) => {
    const word = argument === undefined ? `--${flag}` : `--${flag} ${argument}`;
    return `${required ? word : `[${word}]`}${list ? '...' : ''}`;
  });
  if (verb.operands) words.push(verb.operands.synopsis);
  const start = `linux-tproxy ${verb.name} `;
  return fill(words.map((word) => word.replaceAll(' ', NO_BREAK)).join(' '), WIDTH - INDENT - start.length)
    .split('\n')
    .map((line, index) => (index === 0 ? start : ' '.repeat(start.length)) + line)
    .join('\n')
    .replaceAll(NO_BREAK, ' ');
}
const NO_BREAK = '\u00a0';

function optionText({ flag, short, argument, list, help: text }: Option): string {
  const names = [...(short === undefined ? [] : [`-${short}`]), `--${flag}`].join(', ');
  const repeat = list ? `${argument},...` : argument;
  return `${names}${argument === undefined ? '' : ` ${repeat}`}\n${indent(fill(text, WIDTH - INDENT - 4), 4)}`;
}

function definitions(pairs: readonly (readonly [string, string])[]): string {
  const width = Math.max(...pairs.map(([term]) => term.length)) + 2;
  return pairs
    .map(([term, text]) => term.padEnd(width) + indent(fill(text, WIDTH - INDENT - width), width).trimStart())
    .join('\n');
}

function page(sections: readonly (readonly [string, readonly string[]])[]): string {
  return sections
    .filter(([, paragraphs]) => paragraphs.length > 0)
    .map(([title, paragraphs]) => {
      // What has line breaks is laid out already.
      const body = paragraphs.map((each) => (each.includes('\n') ? each : fill(each))).join('\n\n');
      return `${title}\n${indent(body, INDENT)}\n`;
    })
    .join('\n');
}

function fill(text: string, width = WIDTH - INDENT): string {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line].join('\n');
}

const indent = (text: string, by: number) => text.replace(/^(?=.)/gm, ' '.repeat(by));
const sentence = (text: string) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
