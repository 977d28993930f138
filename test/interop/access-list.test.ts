/**
 * A server that lets clients in by their address (nginx, `allow` and `deny`): through the proxy as without it, since it sees
 * the client's own. IPv4 and IPv6.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent, createTransparentServer, relay, type TransparentServer } from '../../src/index.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { start, stop, stopAll } from '../helpers/proxies.js';
import { listening } from '../helpers/web.js';

const test = suite('access list');
const stranger = { ipv4: '198.51.100.7', ipv6: '2001:db8::7' };
let lab: Lab;
let netns: string;
let nginx: Program;

const configuration = `
user root; daemon off; master_process off; pid /run/nginx/pid; error_log stderr;
events {}
http {
  access_log off; client_body_temp_path /run/nginx/client_body; proxy_temp_path /run/nginx/proxy;
  fastcgi_temp_path /run/nginx/fastcgi; uwsgi_temp_path /run/nginx/uwsgi; scgi_temp_path /run/nginx/scgi;
  server {
    listen 80; listen [::]:80;
    allow ${addresses.client.ipv4}; allow ${addresses.client.ipv6}; deny all;
    # 'return' comes before the list is looked at, a named location behind it.
    location / { try_files /nothing @page; }
    location @page { return 200 "$remote_addr\\n"; }
  }
}`;

test.before(async () => {
  lab = await createLab({ moreAddresses: { client: [stranger.ipv4, stranger.ipv6] } });
  netns = lab.netns('router');
  mkdirSync('/run/nginx', { recursive: true });
  writeFileSync('/run/nginx/nginx.conf', configuration);
  nginx = lab.spawn('server', 'nginx', '-c', '/run/nginx/nginx.conf');
  await listening(lab, 80, 'server');
});
test.after.each(stopAll);
test.after(async () => {
  await nginx.stop();
  await lab.dispose();
});

const family = { '4': 'ipv4', '6': 'ipv6' } as const;
/** Status and page, for the client by this address of its own. */
async function fetchFrom(version: '4' | '6', from: string): Promise<string> {
  const server = addresses.server[family[version]];
  const url = `http://${version === '6' ? `[${server}]` : server}/`;
  const answer = await lab.run(
    'client',
    ...(['curl', '-s', '--max-time', '30', '--interface', from, '-w', '%{http_code}', url] as const),
  );
  const status = answer.slice(-3);
  return status === '200' ? `200 ${answer.slice(0, -3).trim()}` : status;
}

async function lists(seen: (address: string) => string): Promise<void> {
  for (const version of ['4', '6'] as const) {
    const client = addresses.client[family[version]];
    assert.is(await fetchFrom(version, client), seen(client));
    assert.is(await fetchFrom(version, stranger[family[version]]), '403');
  }
}
const itself = (address: string) => `200 ${address}`;

test('without the proxy: the one is let in, the other is not', () => lists(itself));

test('through relay: true', async () => {
  const server = await start(createTransparentServer({ intercept: { tcp: [80] }, relay: true, netns }));
  await lists(itself);
  assert.is(server.stats().connections.total, 4);
  await stop(server);
});

test('through a proxy of sockets, connectTransparent and relay()', async () => {
  let connections = 0;
  const server: TransparentServer = createTransparentServer(
    { intercept: { tcp: [80] }, netns, pauseOnConnect: true },
    async (socket) => {
      connections++;
      const { address, port } = socket.originalDestination;
      const localAddress = (socket.remoteAddress ?? '').replace('::ffff:', '');
      relay(socket, await connectTransparent({ address, port, localAddress, netns }));
    },
  );
  await start(server);
  await lists(itself);
  assert.is(connections, 4);
  await stop(server);
});

test("from the proxy's own address nobody is let in: it is the client's that the list is about", async () => {
  const server = await start(
    createTransparentServer({ intercept: { tcp: [80] }, netns, relay: () => ({ kind: 'relay', from: 'proxy' }) }),
  );
  await lists(() => '403');
  await stop(server);
});

test.run();
