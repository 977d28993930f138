/** Transparent servers of one test file, and the sysctls under which they have to work. */
import { once } from 'node:events';
import {
  createTransparentServer,
  type InstalledRules,
  type InstallOptions,
  installIntercept,
  type TransparentServer,
} from '../../src/index.js';
import type { InterceptOptions } from '../../src/types.js';
import type { Lab } from './lab.js';
import { greeting } from './talk.js';

/** Everything at once that breaks the usual recipe, or might. */
export const hostile = {
  'net.ipv4.conf.all.src_valid_mark': 1,
  'net.ipv4.conf.all.rp_filter': 1,
  'net.ipv4.tcp_fwmark_accept': 1,
  'net.ipv4.fwmark_reflect': 1,
  'net.ipv6.fwmark_reflect': 1,
  'net.ipv4.ip_early_demux': 0,
  'net.ipv4.tcp_rfc1337': 1,
  'net.ipv4.tcp_syncookies': 2,
};

const open = new Set<TransparentServer>();
const rules = new Set<InstalledRules>();

export async function start(server: TransparentServer, port = 50080, address?: string): Promise<TransparentServer> {
  open.add(server);
  await once(server.listen(port, address), 'listening');
  return server;
}

export async function stop(server: TransparentServer): Promise<void> {
  open.delete(server);
  await new Promise((resolve) => server.close(resolve));
}

/** For `test.after.each`: what a failed test left open. */
export async function stopAll(): Promise<void> {
  for (const server of open) await stop(server);
  for (const each of rules) await each.uninstall();
  rules.clear();
}

/** Rules in the router, for a proxy on port 50080; they are gone after the test at the latest. */
export async function install(lab: Lab, options: Partial<InstallOptions>): Promise<InstalledRules> {
  const installed = await installIntercept({ port: 50080, netns: lab.netns('router'), ...options });
  rules.add(installed);
  return installed;
}

/** A proxy in the router that answers itself, and says so. */
export function startProxy(lab: Lab, intercept: InterceptOptions = { tcp: [80, 9001] }): Promise<TransparentServer> {
  return start(
    createTransparentServer({ intercept, netns: lab.netns('router') }, (socket) => greeting('proxy', socket)),
  );
}

/** What a server that listens has installed. */
export function rulesOf(server: TransparentServer): InstalledRules {
  if (!server.rules) throw new Error('nothing is installed');
  return server.rules;
}
