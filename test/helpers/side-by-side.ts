/** Two empty network namespaces: what we make in the one must look like what commands make in the other. */
import { execFileSync } from 'node:child_process';

const sides = ['ours', 'theirs'];

export async function sideBySide(work: () => Promise<void>): Promise<void> {
  for (const side of sides) execFileSync('sh', ['-euc', `ip netns add ${side}; ip -n ${side} link set lo up`]);
  try {
    await work();
  } finally {
    for (const side of sides) execFileSync('ip', ['netns', 'delete', side]);
  }
}

export const inside = (host: string, script: string): string =>
  execFileSync('ip', ['netns', 'exec', host, 'sh', '-euc', script], { encoding: 'utf8' });
