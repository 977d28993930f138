/** Who is measured: this package's relay in its kinds, HAProxy, nginx, Node alone, and no proxy at all. */
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { installIntercept } from '../src/index.js';
import { command } from '../test/helpers/cli.js';
import type { Lab, Program } from '../test/helpers/lab.js';

export const ports = { echo: 7000, answer: 7001, sink: 7002, iperf: 5201, sockperf: 7003 };
export const proxyPort = 50080;

/** A running peer: its program, where it has one, and which process of that does the work. */
export interface Running {
  readonly program?: Program;
  readonly pid?: number;
  stop(): Promise<void>;
}
export interface Peer {
  readonly name: string;
  start(lab: Lab): Promise<Running>;
}

/** A proxy that is not ours, behind our rules. */
const behind = (name: string, file: string, configuration: string, ...command: string[]): Peer => ({
  name,
  async start(lab) {
    writeFileSync(file, configuration);
    const rules = await installIntercept({ port: proxyPort, tcp: Object.values(ports), netns: lab.netns('router') });
    const program = lab.spawn('router', ...(command as [string]));
    const listens = `until ss -Hltn 'sport = :${proxyPort}' | grep -q .; do sleep 0.02; done`;
    await lab.run('router', 'timeout', '5', 'sh', '-c', listens);
    await sleep(200);
    const master = program.process.pid as number;
    const [worker = master] = readFileSync(`/proc/${master}/task/${master}/children`, 'utf8').match(/\d+/g) ?? [];
    return {
      program,
      pid: Number(worker),
      async stop() {
        await program.stop();
        await rules.uninstall();
      },
    };
  },
});

const haproxy = (name: string, tuning: string, splice: readonly string[]) =>
  behind(
    name,
    '/run/haproxy.cfg',
    `global
  nbthread 1
  maxconn 4000
  ${tuning}
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  ${splice.map((option) => `option ${option}`).join('\n  ')}
listen relay
  bind :${proxyPort} transparent backlog 4096
  source 0.0.0.0 usesrc clientip
  server original 0.0.0.0
`,
    ...['haproxy', '-db', '-f', '/run/haproxy.cfg'],
  );

/** nginx cannot make a transparent listener; but it takes one over, as from the process before it in an upgrade. */
const transparentListener = `
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
listener.bind(('0.0.0.0', ${proxyPort}))
listener.listen(4096)
os.set_inheritable(listener.fileno(), True)
os.environ['NGINX'] = f'{listener.fileno()};'
os.execvp(sys.argv[1], sys.argv[1:])
`;

const nginx = behind(
  'nginx stream',
  '/run/nginx.conf',
  `daemon off; worker_processes 1; worker_rlimit_nofile 20000; error_log stderr crit; pid /run/nginx.pid; user root;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events { worker_connections 10000; }
stream {
  server {
    listen ${proxyPort} backlog=4096;
    proxy_bind $remote_addr transparent;
    proxy_pass $server_addr:$server_port;
    proxy_half_close on;
    tcp_nodelay on;
  }
}
`,
  ...['python3', '-c', transparentListener, 'nginx', '-c', '/run/nginx.conf'],
);

const own = (name: string, kind = name): Peer => ({
  name,
  async start(lab) {
    const script = fileURLToPath(new URL('proxy.mjs', import.meta.url));
    const index = join(dirname(command()[1] as string), '../index.js');
    const args = [index, kind, lab.netns('router'), proxyPort, ...Object.values(ports)].map(String);
    const program = await lab.node('router', script, ...args);
    return { program, pid: program.process.pid as number, stop: async () => void (await program.stop()) };
  },
});

export const peers = {
  forwarding: { name: 'forwarding', start: async () => ({ stop: async () => {} }) },
  haproxy: haproxy('haproxy', '', ['splice-request', 'splice-response']),
  haproxyAuto: haproxy('haproxy splice-auto', '', ['splice-auto']),
  haproxy1M: haproxy('haproxy 1 MiB pipes', 'tune.pipesize 1048576', ['splice-request', 'splice-response']),
  nginx,
  node: own('node a.pipe(b)', 'pipe'),
  ours: own('linux-tproxy', 'auto'),
  epoll: own('epoll'),
  uringSplice: own('uring-splice'),
  decide: own('decision callback', 'decide'),
  listener: own('listener + relay()', 'listener'),
} satisfies Record<string, Peer>;
export type PeerName = keyof typeof peers;
