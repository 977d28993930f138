/** `linux-tproxy completion`: prints a completion script, made from the verbs and their options. */
import { firstSentence } from './help.js';
import { help } from './options.js';
import type { Option, Verb } from './verb.js';

const shells = { bash, zsh, fish };

export function completionOf(verbs: readonly Verb[]): Verb {
  return {
    name: 'completion',
    summary: 'print a completion script for bash, zsh or fish',
    operands: { synopsis: 'bash | zsh | fish', kind: Object.keys(shells) },
    options: [],
    description: ['Prints a script that makes the shell complete verbs, options and their arguments.'],
    changes: ['Nothing. No privileges are needed.'],
    examples: [
      ['bash, in ~/.bashrc:', 'source <(linux-tproxy completion bash)'],
      ['zsh, in ~/.zshrc behind compinit:', 'source <(linux-tproxy completion zsh)'],
      ['fish:', 'linux-tproxy completion fish > ~/.config/fish/completions/linux-tproxy.fish'],
    ],
    seeAlso: ['bash(1)', 'zshcompsys(1)', 'fish(1)'],

    async run(_values, [shell]) {
      process.stdout.write(shells[shell as keyof typeof shells](verbs));
      return 0;
    },
  };
}

const optionsOf = (verb: Verb): readonly Option[] => [...verb.options, help];
/** In single quotes; all three shells join what stands side by side. */
const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;

function bash(verbs: readonly Verb[]): string {
  const words = (list: readonly string[]) => `COMPREPLY=($(compgen -W ${quote(list.join(' '))} -- "$cur"))`;
  // A flag means the same in every verb.
  const withArgument = new Map(
    verbs.flatMap(({ options }) =>
      options.filter(({ argument }) => argument !== undefined).map((each) => [each.flag, each]),
    ),
  );
  const plain = [...withArgument.values()].filter(({ complete }) => complete === undefined);
  const argumentCases = [...withArgument.values()].flatMap(({ flag, complete }) => {
    if (complete === undefined) return [];
    const offer =
      complete === 'interface'
        ? 'COMPREPLY=($(compgen -W "$(ls /sys/class/net)" -- "$cur"))'
        : complete === 'netns'
          ? 'COMPREPLY=($(compgen -W "$(ls /run/netns 2>/dev/null)" -- "$cur") $(compgen -f -- "$cur"))'
          : words(complete);
    return [`    --${flag}) ${offer}; return ;;`];
  });
  const verbCases = verbs.map((verb) => {
    const kind = verb.operands?.kind;
    const operands = kind === 'command' ? ['--'] : (kind ?? []);
    const flags = optionsOf(verb).map(({ flag }) => `--${flag}`);
    return `    ${verb.name}) ${words([...operands, ...flags])} ;;`;
  });
  return `# linux-tproxy completion for bash
_linux_tproxy() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD - 1]} verb=\${COMP_WORDS[1]} at
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    ${words([...verbs.map(({ name }) => name), '--help', '--version'])}
    return
  fi
  for ((at = 2; at < COMP_CWORD; at++)); do
    if [[ \${COMP_WORDS[at]} == -- ]]; then
      if ((at == COMP_CWORD - 1)); then COMPREPLY=($(compgen -c -- "$cur")); else COMPREPLY=($(compgen -f -- "$cur")); fi
      return
    fi
  done
  case $prev in
    ${plain.map(({ flag }) => `--${flag}`).join(' | ')}) return ;;
${argumentCases.join('\n')}
  esac
  case $verb in
${verbCases.join('\n')}
  esac
}
complete -F _linux_tproxy linux-tproxy
`;
}

function zsh(verbs: readonly Verb[]): string {
  const escaped = (text: string) => text.replace(/[[\]:\\]/g, '\\$&');
  const specification = ({ flag, argument, list, complete, help: text }: Option) => {
    const action =
      complete === 'interface'
        ? '_net_interfaces'
        : complete === 'netns'
          ? '_files -W /run/netns'
          : complete
            ? `(${complete.join(' ')})`
            : ' ';
    const value = argument === undefined ? '' : `:${argument}:${action}`;
    return quote(`${list ? '*' : ''}--${flag}[${escaped(firstSentence(text))}]${value}`);
  };
  const cases = verbs.map((verb) => {
    const kind = verb.operands?.kind;
    const operands = kind === 'command' ? ["'*::command:_normal'"] : kind ? [quote(`1:what:(${kind.join(' ')})`)] : [];
    return `    ${verb.name}) _arguments -S ${[...optionsOf(verb).map(specification), ...operands].join(' ')} ;;`;
  });
  return `#compdef linux-tproxy
# linux-tproxy completion for zsh
_linux_tproxy() {
  local -a verbs=(${verbs.map(({ name, summary }) => quote(`${name}:${escaped(summary)}`)).join(' ')})
  if ((CURRENT == 2)); then
    _describe verb verbs
    return
  fi
  local verb=$words[2]
  shift words
  ((CURRENT--))
  case $verb in
${cases.join('\n')}
  esac
}
if [[ $funcstack[1] == _linux_tproxy ]]; then _linux_tproxy "$@"; else compdef _linux_tproxy linux-tproxy; fi
`;
}

function fish(verbs: readonly Verb[]): string {
  const lines = ['# linux-tproxy completion for fish', 'complete -c linux-tproxy -f'];
  for (const verb of verbs) {
    lines.push(`complete -c linux-tproxy -n __fish_use_subcommand -a ${verb.name} -d ${quote(verb.summary)}`);
    const here = `complete -c linux-tproxy -n '__fish_seen_subcommand_from ${verb.name}'`;
    for (const { flag, short, argument, complete, help: text } of optionsOf(verb)) {
      const candidates =
        complete === 'interface'
          ? " -a '(command ls /sys/class/net)'"
          : complete === 'netns'
            ? " -a '(command ls /run/netns 2>/dev/null)' -F"
            : complete
              ? ` -a ${quote(complete.join(' '))}`
              : '';
      const value = argument === undefined ? '' : complete === 'netns' ? ' -r' : ' -x';
      lines.push(
        `${here} -l ${flag}${short === undefined ? '' : ` -s ${short}`}${value}${candidates} -d ${quote(firstSentence(text))}`,
      );
    }
    const kind = verb.operands?.kind;
    if (kind === 'command') {
      const where = (isBehind: string) =>
        `complete -c linux-tproxy -n '__fish_seen_subcommand_from ${verb.name}; and ${isBehind} -- -- (commandline -opc)'`;
      lines.push(
        `${where('not contains')} -a --`,
        `${where('contains')} -a '(complete -C (string replace -r "^.*? -- " "" -- (commandline -cp)))'`,
      );
    } else if (kind) lines.push(`${here} -a ${quote(kind.join(' '))}`);
  }
  return `${lines.join('\n')}\n`;
}
