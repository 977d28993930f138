/**
 * Bridges whose frames pass the rules before they are routed (br_netfilter, which Docker loads). TPROXY hands such a packet its
 * socket, which is taken off it again on its way up from the bridge (skb_orphan in ip_rcv), and the rules are not run once
 * more (ip_sabotage_in of net/bridge/br_netfilter_hooks.c): what is intercepted of it is lost. No rule of ours can mend that.
 */
import type { Link } from '../netlink/types.js';
import { sysctls } from '../procfs.js';
import type { Family } from '../types.js';

export interface LossyBridges {
  readonly bridges: readonly string[];
  /** That are 1, as `sysctl` writes them. */
  readonly sysctls: readonly string[];
}

const sysctlOf: Readonly<Record<Family, string>> = {
  ipv4: 'net.bridge.bridge-nf-call-iptables',
  ipv6: 'net.bridge.bridge-nf-call-ip6tables',
};

/** Where there are any, and interception takes what comes in by them. */
export function lossyBridges(
  links: readonly Link[],
  {
    netns,
    families,
    interfaces,
  }: { netns: string | undefined; families: readonly Family[]; interfaces?: readonly string[] | undefined },
): LossyBridges | undefined {
  const bridges = links
    .filter(({ name, linkInfo }) => linkInfo?.kind === 'bridge' && (interfaces?.includes(name) ?? true))
    .map(({ name }) => name);
  if (bridges.length === 0) return undefined;
  const names = families.map((family) => sysctlOf[family]);
  const values = sysctls(netns, names);
  const on = names.filter((_, index) => values[index] === 1);
  return on.length > 0 ? { bridges, sysctls: on } : undefined;
}

export const letBridgesBe = ({ sysctls }: LossyBridges): string =>
  `sysctl -w ${sysctls.map((name) => `${name}=0`).join(' ')}`;

export function lossyBridgesText(found: LossyBridges): string {
  const { bridges, sysctls } = found;
  return `What comes from the ports of ${bridges.join(', ')} is lost where it is intercepted, for ${sysctls.join(' and ')} is 1 (Docker sets it): \`${letBridgesBe(found)}\`, or leave the bridge out by naming the other \`interfaces\``;
}
