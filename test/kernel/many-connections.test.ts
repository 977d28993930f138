// runs alone
/**
 * More connections from one client's address than there are ports: 30,000 at once, to two servers, and to one as many as the
 * range of ports has. A process may have 20,000 descriptors, so several hold them; the servers leave theirs in the backlog.
 */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { installIntercept } from '../../src/index.js';
import { native } from '../../src/native.js';
import { compiled } from '../helpers/compiled.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';

const test = suite('many connections');
const COUNT = 30_000;
const PROCESSES = 2;
let lab: Lab;
const backlogs: number[] = [];

test.before(async () => {
  lab = await createLab({
    sysctls: { server: { 'net.core.somaxconn': 65535, 'net.ipv4.tcp_max_syn_backlog': 65535 } },
  });
  for (const address of [addresses.server.ipv4, addresses.server.ipv6])
    for (const port of [80, 81, 82])
      backlogs.push(
        native.openListener({ address, port, backlog: 65535, transparent: false, netns: lab.netns('server') }),
      );
});
test.after(async () => {
  for (const fd of backlogs) native.closeDescriptor(fd);
  await lab.dispose();
});

async function hold(count: number, from: string, ...targets: string[]) {
  const programs = Array.from({ length: PROCESSES }, () => {
    const script = compiled('test/helpers/connect-many.ts');
    return lab.spawn('router', process.execPath, script, String(count / PROCESSES), from, ...targets);
  });
  const lines = await Promise.all(
    programs.map((program) => program.until(/^ready (\d+) .* (\d+) ports, (.*)$/m, 120_000)),
  );
  return {
    connections: lines.reduce((sum, [, connections]) => sum + Number(connections), 0),
    errors: lines.map(([, , , error]) => error),
    end: () => Promise.all(programs.map((program) => program.stop('SIGKILL'))),
  };
}
const established = (from: string) =>
  lab
    .exec('router', 'ss', '-Htn', 'state', 'established', 'src', from.includes(':') ? `[${from}]` : from)
    .trim()
    .split('\n').length;

for (const family of ['ipv4', 'ipv6'] as const) {
  const from = addresses.client[family];
  const to = (port: number) => `${addresses.server[family]}:${port}`;

  test(`${family}: ${COUNT} from one address, to two ports of a server`, async () => {
    await using _rules = await installIntercept({ port: 50080, netns: lab.netns('router') });
    const held = await hold(COUNT, from, to(80), to(81));
    assert.equal(held.errors, ['no error', 'no error']);
    assert.is(held.connections, COUNT);
    assert.is(established(from), COUNT);
    await held.end();
  });

  test(`${family}: to one, as many as there are ports, and then EADDRNOTAVAIL`, async () => {
    await using _rules = await installIntercept({ port: 50080, netns: lab.netns('router') });
    lab.exec('router', 'sysctl', '-qw', 'net.ipv4.ip_local_port_range=20000 23999');
    const held = await hold(5000, from, to(82));
    lab.exec('router', 'sysctl', '-qw', 'net.ipv4.ip_local_port_range=32768 60999');
    assert.is(held.connections, 4000);
    assert.match(held.errors.join('\n'), /EADDRNOTAVAIL.*net\.ipv4\.ip_local_port_range/);
    await held.end();
  });
}

test.run();
