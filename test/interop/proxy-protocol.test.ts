/** Servers that speak the PROXY protocol, HAProxy and nginx: they learn the client and its original destination from our header. */
import { writeFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { createTransparentServer } from '../../src/index.js';
import type { Engine, RelayDecision, RelayTarget } from '../../src/types.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { start, stop } from '../helpers/proxies.js';
import { families, listening } from '../helpers/web.js';

const test = suite('PROXY protocol');
let lab: Lab;
const ports = { haproxy: 8001, nginx: 8002 };

test.before(async () => {
  lab = await createLab();
  writeFileSync(
    '/run/haproxy.cfg',
    `defaults
  mode http
  timeout connect 30s
  timeout client 30s
  timeout server 30s
frontend web
  bind :::${ports.haproxy} v4v6 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port]"
`,
  );
  writeFileSync(
    '/run/nginx.conf',
    `user root; daemon off; master_process off; error_log stderr; pid /run/nginx.pid; events {}
http {
  access_log off; client_body_temp_path /run/nginx-body; proxy_temp_path /run/nginx-proxy;
  fastcgi_temp_path /run/nginx-f; uwsgi_temp_path /run/nginx-u; scgi_temp_path /run/nginx-s;
  server {
    listen ${ports.nginx} proxy_protocol; listen [::]:${ports.nginx} proxy_protocol;
    return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
  }
}
`,
  );
  lab.spawn('server', 'haproxy', '-db', '-f', '/run/haproxy.cfg');
  lab.spawn('server', 'nginx', '-c', '/run/nginx.conf');
  for (const port of Object.values(ports)) await listening(lab, port, 'server');
});
test.after(() => lab.dispose());

for (const engine of ['epoll', 'uring'] satisfies Engine[])
  for (const [name, port] of Object.entries(ports))
    for (const version of [1, 2] as const)
      test(`${engine}: ${name}, version ${version}, both families, for all alike and decided one by one`, async () => {
        for (const family of families) {
          const to = { address: addresses.server[family], port };
          const decision: RelayTarget = { kind: 'relay', to, proxyProtocol: version };
          for (const relay of [decision, (): RelayDecision => decision]) {
            const server = createTransparentServer({
              intercept: { tcp: [80] },
              netns: lab.netns('router'),
              relay,
              engine,
            });
            await start(server);
            // The header is no byte of the client's: it is not counted, and the request behind it arrives whole.
            const host = family === 'ipv6' ? `[${to.address}]` : to.address;
            const page = await lab.run(
              'client',
              'curl',
              '-sS',
              '--max-time',
              '30',
              '--local-port',
              '40000-60000',
              `http://${host}/`,
            );
            assert.match(page, new RegExp(`^${addresses.client[family]} \\d+ ${to.address} 80$`));
            await stop(server);
            const { bytesFromClient } = server.stats();
            assert.ok(bytesFromClient > 60n && bytesFromClient < 100n, `${bytesFromClient} bytes of request`);
          }
        }
      });

test.run();
