/** What a verb of the command is made of: types only. Help, completion and the reading of the command line are made from it. */

export interface Verb {
  readonly name: string;
  /** Half a line, in lists of verbs. */
  readonly summary: string;
  /** What comes behind the options: `-- COMMAND [ARGUMENT]...`. */
  readonly operands?: {
    readonly synopsis: string;
    /** A command and what is its own; or one of these words. */
    readonly kind: 'command' | readonly string[];
  };
  readonly options: readonly Option[];
  /** Paragraphs. */
  readonly description: readonly string[];
  /** What of the host it changes, or that it changes nothing. */
  readonly changes: readonly string[];
  /** Other than 0 ok, 1 failed, 2 usage. */
  readonly exitStatus?: readonly (readonly [status: string, meaning: string])[];
  readonly examples: readonly (readonly [what: string, command: string])[];
  readonly seeAlso: readonly string[];
  /** Gives the exit status. */
  run(values: Values, operands: readonly string[]): Promise<number>;
}

export interface Option {
  /** The long name without its dashes. */
  readonly flag: string;
  /** What the functions of the package call it, in their messages. */
  readonly key?: string;
  readonly short?: string;
  /** What its argument is called; an option without is a switch. */
  readonly argument?: string;
  /** May be given several times, or with a list separated by commas. */
  readonly list?: true;
  readonly required?: true;
  /** Sentences; the first is what completion shows. */
  readonly help: string;
  /** What completion offers for the argument. */
  readonly complete?: readonly string[] | 'interface' | 'netns';
}

/** Options given, by flag: a text, for lists all of them, for switches `true`. */
export type Values = Readonly<Record<string, string | readonly string[] | true | undefined>>;
