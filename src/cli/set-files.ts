/** Sets that are read from files: which there are, and what stands in such a file. Pure. */
import type { InstalledRules } from '../intercept/installation.js';
import { parsePorts, parsePrefixes } from '../intercept/ranges.js';
import type { PortSet, PrefixSet } from '../types.js';

export interface SetFile {
  readonly flag: string;
  /** The option whose arguments it adds to. */
  readonly of: string;
  /** Throws, by this name, for what is not one. */
  readonly parse: (name: string, specs: readonly string[]) => unknown;
  readonly set: (rules: InstalledRules) => PrefixSet | PortSet | undefined;
}

export const setFiles: readonly SetFile[] = [
  { flag: 'tcp-file', of: 'tcp', parse: parsePorts, set: ({ ports }) => ports.tcp },
  { flag: 'from-file', of: 'from', parse: parsePrefixes, set: ({ from }) => from },
  { flag: 'to-file', of: 'to', parse: parsePrefixes, set: ({ to }) => to },
  { flag: 'exclude-from-file', of: 'exclude-from', parse: parsePrefixes, set: ({ exclude }) => exclude.from },
  { flag: 'exclude-to-file', of: 'exclude-to', parse: parsePrefixes, set: ({ exclude }) => exclude.to },
];

/** What a file lists; an error names the file and the line. */
export function listsIn(file: string, text: string, parse: SetFile['parse']): string[] {
  return text.split('\n').flatMap((line, index) => {
    const specs = line
      .replace(/#.*/, '')
      .split(/[\s,]+/)
      .filter((spec) => spec !== '');
    parse(`${file}:${index + 1}`, specs);
    return specs;
  });
}
