/** What the groups of checks look at, read once. Nothing in here, or in them, changes the host. */
import type { Installed, Leftovers } from '../intercept/installed.js';
import type { Link, NftChain, NftRule, Route, Rule } from '../netlink/types.js';
import type { Finding, Fwmark } from '../types.js';

export interface Look {
  /** Path of the network namespace, if it is not the process's. */
  readonly netns: string | undefined;
  readonly links: readonly Link[];
  readonly chains: readonly NftChain[];
  readonly nftRules: readonly NftRule[];
  readonly rules: readonly Rule[];
  readonly routes: readonly Route[];
  readonly installed: readonly Installed[];
  readonly leftovers: Leftovers;
  /** What intercepted packets carry: of what is installed, or what would be chosen first. */
  readonly marks: readonly Fwmark[];
}

export type Group = (look: Look) => readonly Finding[];

export const ok = (id: string, summary: string, detail: string): Finding => ({ id, severity: 'ok', summary, detail });
