/** Curl in the client and a web server in the server that tells whom it saw: what a proxy in between must not change. */
import * as assert from 'uvu/assert';
import { addresses, type Host, type Lab } from './lab.js';

export const families = ['ipv4', 'ipv6'] as const;

/** The web server, on port 80 of both families. */
export async function serve(lab: Lab): Promise<void> {
  await lab.node('server', new URL('peers/whoami.mjs', import.meta.url), '80');
}

/** Fetches the page from the server over both families: it was the client that the server saw, under its own address. */
export async function browse(lab: Lab): Promise<void> {
  for (const family of families) {
    const [client, server] = [addresses.client[family], addresses.server[family]];
    const url = `http://${family === 'ipv6' ? `[${server}]` : server}/`;
    const page = await lab.run('client', 'curl', '-sS', '--fail', '--max-time', '30', url);
    assert.match(page, new RegExp(`^${client} \\d+ ${server} 80\n$`));
  }
}

/** Waits until somebody listens there. */
export async function listening(lab: Lab, port: number, host: Host = 'router'): Promise<void> {
  const until = `until ss -Hltn 'sport = :${port}' | grep -q .; do sleep 0.02; done`;
  await lab.run(host, 'timeout', '30', 'sh', '-c', until);
}
