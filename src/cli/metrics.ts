/** Counters in the text format of Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/), served by HTTP. */
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { Counters } from '../intercept/counters.js';
import type { TransparentServer } from '../server.js';
import type { HostPort, RelayStats } from '../types.js';

/** Serves /metrics until it is closed; does not keep the process alive. */
export async function serveMetrics({ address, port }: HostPort, server: TransparentServer): Promise<Server> {
  const started = Date.now() / 1000 - process.uptime();
  const http = createServer(async ({ method, url }, response) => {
    if (url !== '/metrics' || (method !== 'GET' && method !== 'HEAD')) {
      response.writeHead(url === '/metrics' ? 405 : 404, { 'content-type': 'text/plain' }).end('GET /metrics\n');
      return;
    }
    // While the rules come or go there is nothing that they could have counted.
    const rules = await server.rules?.counters().catch(() => undefined);
    response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' });
    response.end(metricsText(server.stats(), rules, started));
  });
  http.listen(port, address);
  await once(http, 'listening');
  return http.unref();
}

export function metricsText(stats: RelayStats, rules: Counters | undefined, startedSeconds: number): string {
  const { user, system } = process.cpuUsage();
  return [
    family('linux_tproxy_relay_info', 'gauge', 'What the relay runs on; always 1.', [[{ engine: stats.engine }, 1]]),
    family('linux_tproxy_relay_connections_total', 'counter', 'Connections accepted.', [[{}, stats.connections.total]]),
    family('linux_tproxy_relay_connections_open', 'gauge', 'Connections that have not ended.', [
      [{}, stats.connections.open],
    ]),
    family('linux_tproxy_relay_bytes_total', 'counter', 'Bytes relayed, by the side they came from.', [
      [{ from: 'client' }, stats.bytesFromClient],
      [{ from: 'server' }, stats.bytesFromServer],
    ]),
    family('linux_tproxy_relay_moved_bytes_total', 'counter', 'Bytes relayed, by how they were moved.', [
      [{ by: 'splice' }, stats.spliced],
      [{ by: 'copy' }, stats.copied],
    ]),
    family('linux_tproxy_relay_pipes', 'gauge', 'Pipes with bytes in them, whose receiver is slow.', [
      [{}, stats.pipes],
    ]),
    family('linux_tproxy_relay_errors_total', 'counter', 'Connects to servers, and accepts, that failed.', [
      [{ call: 'connect' }, stats.connectErrors],
      [{ call: 'accept' }, stats.acceptErrors],
    ]),
    ...(rules
      ? [
          family(
            'linux_tproxy_rule_packets_total',
            'counter',
            'Packets that met a rule.',
            Object.entries(rules).map(([rule, { packets }]) => [{ rule }, packets]),
          ),
          family(
            'linux_tproxy_rule_bytes_total',
            'counter',
            'Bytes of the packets that met a rule.',
            Object.entries(rules).map(([rule, { bytes }]) => [{ rule }, bytes]),
          ),
        ]
      : []),
    family('process_cpu_seconds_total', 'counter', 'CPU time, user and system.', [[{}, (user + system) / 1e6]]),
    family('process_resident_memory_bytes', 'gauge', 'Resident memory.', [[{}, process.memoryUsage.rss()]]),
    family('process_start_time_seconds', 'gauge', 'Start, in seconds since the epoch.', [[{}, startedSeconds]]),
  ].join('');
}

type Sample = readonly [labels: Readonly<Record<string, string>>, value: number | bigint];

function family(name: string, type: 'counter' | 'gauge', help: string, samples: readonly Sample[]): string {
  const lines = samples.map(([labels, value]) => {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${text}"`);
    return `${name}${pairs.length > 0 ? `{${pairs.join(',')}}` : ''} ${value}\n`;
  });
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join('')}`;
}
