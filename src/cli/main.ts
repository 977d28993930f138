#!/usr/bin/env node
/**
 * The command `linux-tproxy`: finds the verb, reads its options, runs it. One file per verb; what a verb is made of is in
 * verb.ts. Exit status 0 ok, 1 failed, 2 usage. An error is one line on stderr.
 */
import { readFileSync } from 'node:fs';
import { usageError } from '../errors.js';
import { commandHelp, usage, verbHelp } from './help.js';
import { inTermsOfFlags, readCommandLine } from './options.js';
import type { Verb } from './verb.js';
import { verbs } from './verbs.js';

// Whoever reads our output may have read enough of it.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit();
});
process.exitCode = await main(process.argv.slice(2));

async function main([word, ...args]: readonly string[]): Promise<number> {
  const verb = verbs.find(({ name }) => name === word);
  try {
    if (verb) return await runVerb(verb, args);
    if (word === '--version') return say(`${version()}\n`);
    if (word === '--help' || word === '-h') return say(commandHelp(verbs));
    throw usageError(word === undefined ? 'which verb is missing' : `there is no verb '${word}'`);
  } catch (error) {
    return complain(error as NodeJS.ErrnoException, verb);
  }
}

async function runVerb(verb: Verb, args: readonly string[]): Promise<number> {
  const { values, operands } = readCommandLine(verb, args);
  if (values['help'] === true) return say(verbHelp(verb));
  const kind = verb.operands?.kind;
  if (Array.isArray(kind) && !(operands.length === 1 && kind.includes(operands[0])))
    throw usageError(`it takes one of ${kind.join(', ')}`);
  return await verb.run(values, operands);
}

function complain({ code = '', message }: NodeJS.ErrnoException, verb: Verb | undefined): number {
  const isUsage = /^ERR_(PARSE_ARGS|INVALID_ARG|OUT_OF_RANGE|TPROXY_USAGE)/.test(code);
  // parseArgs adds advice about `--`, which the usage line gives better.
  const what = code.startsWith('ERR_PARSE_ARGS')
    ? message.replace(/\. .*$/s, '')
    : inTermsOfFlags(message, verb?.options);
  const remedy = verb
    ? ` (usage: ${usage(verb)}; see linux-tproxy ${verb.name} --help)`
    : ` (verbs: ${verbs.map(({ name }) => name).join(', ')}; see linux-tproxy --help)`;
  const line = `linux-tproxy${verb ? ` ${verb.name}` : ''}: ${what}${isUsage ? remedy : ''}`;
  console.error(line.replaceAll('\n', ' '));
  return isUsage ? 2 : 1;
}

function say(text: string): number {
  process.stdout.write(text);
  return 0;
}

function version(): string {
  return JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;
}
