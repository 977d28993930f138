/** `linux-tproxy relay` with real traffic: what it relays, tells, drains, reads again, and leaves behind. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { cli, command } from '../helpers/cli.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { ask, dial, greet } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';
import { families } from '../helpers/web.js';

const test = suite('cli relay');
let lab: Lab;
let before: string;
const target = addresses.server.ipv4;

test.before(async () => {
  lab = await createLab();
  await greet(lab, 'server', 'server', 80);
  await greet(lab, 'server', 'other', 8080);
  before = lab.snapshot('router');
});
test.after.each(async () => {
  for (const program of running) await program.stop('SIGKILL');
  running.clear();
});
test.after(() => lab.dispose());

const running = new Set<Program>(); // what a failed test left

async function start(...options: string[]): Promise<Program> {
  const program = lab.spawn('router', ...command('relay', '--port', '50080', '--tcp', '80', ...options));
  running.add(program);
  await program.until(/Relaying on port 50080|"event":"listening"/);
  return program;
}
async function stop(program: Program): Promise<void> {
  assert.is(await program.stop(), 0, program.output());
  running.delete(program);
  assert.is(lab.snapshot('router'), before, 'the host is as it was');
}
async function ended({ process }: Program): Promise<void> {
  if (process.exitCode === null && process.signalCode === null) await once(process, 'exit');
}
const metrics = async (url = 'http://127.0.0.1:9100/metrics') =>
  samples(await lab.run('router', 'curl', '-sS', '--fail', url));

test('both families, from the client; the beginning and the end are told', async () => {
  const program = await start();
  for (const family of families) {
    const call = await dial(lab, 'client', addresses.server[family], 80);
    assert.is(`${call.who} ${call.sawAddress}`, `server ${addresses.client[family]}`);
    await call.echo('hello');
    await call.hangUp();
  }
  await until(() => lab.exec('router', 'ss', '-Htn') === '', 'both have ended');
  await stop(program);
  assert.match(program.output(), /^Relaying on port 50080, engine \w+\. .*\nDraining: 0 connections/);
  assert.match(program.output(), /\n2 connections, 12 bytes from clients, \d+ from servers\.\n$/);
});

test('--json: lines for each event, and the counters at each interval', async () => {
  const program = await start('--json', '--interval', '0.2', '--engine', 'copy');
  const call = await dial(lab, 'client', target, 80);
  await call.echo('hello');
  await program.until(/"bytesFromClient":6[\s\S]*"event":"stats"/);
  await call.hangUp();
  await stop(program);
  const lines = program
    .output()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const events = lines.map(({ event }) => event);
  assert.equal([events[0], ...events.slice(-2)], ['listening', 'draining', 'end']);
  assert.equal([lines[0].port, lines[0].engine, lines[0].nftTable], [50080, 'copy', 'linux-tproxy-50080']);
  const stats = lines.filter(({ event }) => event === 'stats');
  assert.ok(stats.length >= 2, program.output());
  const { connections, bytesFromClient, copied, engine, time } = stats
    .filter(({ connections }) => connections.open === 1)
    .at(-1);
  assert.equal(
    { connections, bytesFromClient, engine },
    { connections: { open: 1, total: 1 }, bytesFromClient: 6, engine: 'copy' },
  );
  assert.ok(copied > 6 && Date.parse(time) > 0);
  assert.ok(stats.some(({ bytesFromClientPerSecond }) => bytesFromClientPerSecond > 0));
});

test('--threads: so many listeners share the port, each has its part of the connections, and all close', async () => {
  const program = await start('--threads', '3');
  const listeners = (await lab.run('router', 'ss', '-tlnpH', 'sport', '=', ':50080')).trim().split('\n');
  const on = (any: string) => listeners.filter((line) => line.includes(` ${any}:50080 `)).length;
  assert.equal([on('0.0.0.0'), on('[::]')], [3, 3], listeners.join('\n'));
  const tasks = `/proc/${/pid=(\d+)/.exec(listeners[0] as string)?.[1]}/task`;
  const isRelay = (id: string) => readFileSync(`${tasks}/${id}/comm`, 'utf8') === 'tproxy-relay\n';
  const threads = readdirSync(tasks).filter(isRelay);
  assert.is(threads.length, 3);
  /** How often each was given a CPU. */
  const ran = () => threads.map((id) => Number(readFileSync(`${tasks}/${id}/schedstat`, 'utf8').split(' ')[2]));
  const idle = ran();
  const calls = await Promise.all(Array.from({ length: 60 }, () => dial(lab, 'client', target, 80)));
  await Promise.all(calls.map((call) => call.echo('hello')));
  assert.ok(
    ran().every((times, index) => times > (idle[index] as number)),
    'every thread had work',
  );
  await Promise.all(calls.map((call) => call.hangUp()));
  await stop(program);
  assert.match(program.output(), /\n60 connections, 360 bytes from clients, /);
});

test('a terminal has one live line', async () => {
  const line = command('relay', '--port', '50080', '--tcp', '80', '--interval', '0.2').join(' ');
  const program = lab.spawn('router', 'script', '-qec', `exec ${line}`, '/dev/null');
  await program.until(/Relaying/);
  const call = await dial(lab, 'client', target, 80);
  await program.until(/\r1 open \| [\d.]+ \/s \| up .*b\/s \| down .*b\/s \| 1 connections, .*B so far/);
  await call.hangUp();
  program.process.stdin?.write('\x03'); // Ctrl-C
  await program.until(/Draining: [\s\S]*\n1 connections, /);
  await ended(program);
  assert.is(lab.snapshot('router'), before);
});

test('--to, --source, --proxy-protocol: another server, our own address, with a header', async () => {
  const program = await start('--to', `${target}:8080`, '--source', 'proxy', '--proxy-protocol', '1');
  const call = await dial(lab, 'client', target, 80);
  assert.is(`${call.who} ${call.sawAddress}`, `other ${addresses.routerUpstream.ipv4}`);
  // It echoes the header, which it did not expect.
  const header = new RegExp(`got 'PROXY TCP4 ${addresses.client.ipv4} ${target} `);
  await call.echo('x').then(
    () => assert.unreachable(),
    (error) => assert.match(error.message, header),
  );
  await call.hangUp();
  await stop(program);
  const spoofing = await start('--to', `${target}:8080`, '--source-port', 'preserve');
  const other = await dial(lab, 'client', target, 80);
  assert.equal([other.who, other.sawAddress, other.sawPort], ['other', addresses.client.ipv4, other.socket.localPort]);
  await other.hangUp();
  assert.is(await ask(lab, 'client', addresses.server.ipv6, 80), 'server', 'the other family is left alone');
  await stop(spoofing);
});

// ---- end ------------------------------------------------------------------------------------------------------------------------

for (const engine of ['uring', 'epoll'])
  test(`${engine}: SIGTERM drains: what is under way loses no byte, new connections go their own way`, async () => {
    const program = await start('--engine', engine);
    const calls = await Promise.all(families.map((family) => dial(lab, 'client', addresses.server[family], 80)));
    const size = 24 << 20;
    const content = Buffer.alloc(size, 'all of it ');
    const received = calls.map(({ socket }) => {
      const hash = createHash('sha1');
      let bytes = 0;
      socket.on('data', (chunk) => {
        hash.update(chunk);
        bytes += chunk.length;
      });
      socket.write(content);
      return once(socket, 'end').then(() => ({ bytes, hash: hash.digest('hex') }));
    });
    await sleep(20);
    program.process.kill('SIGTERM');
    await program.until(/Draining: 2 connections/);
    await until(() => lab.exec('router', 'ss', '-Htln') === '', 'nobody listens');
    const fresh = await dial(lab, 'client', target, 80);
    await fresh.echo('past it');
    for (const { socket } of calls) socket.end('the end\n');
    const expected = createHash('sha1').update(content).update('the end\n').digest('hex');
    for (const each of received) assert.equal(await each, { bytes: size + 8, hash: expected });
    await program.until(/\n2 connections, \d+ bytes/);
    await fresh.echo('still there');
    await fresh.hangUp();
    await ended(program);
    assert.is(program.process.exitCode, 0);
    assert.is(lab.snapshot('router'), before);
  });

test('--drain-timeout, or a second signal: what is left is closed', async () => {
  for (const options of [['--drain-timeout', '0.3'], []]) {
    const program = await start(...options);
    const call = await dial(lab, 'client', target, 80);
    const closed = once(call.socket, options.length > 0 ? 'error' : 'close').catch((error) => [error]);
    program.process.kill('SIGTERM');
    await program.until(/Draining: 1 connections/);
    if (options.length === 0) {
      await sleep(300);
      await call.echo('as long as it likes');
      program.process.kill('SIGINT');
    }
    const [error] = await closed;
    if (options.length > 0) assert.is(error.code, 'ECONNRESET');
    await ended(program);
    assert.is(program.process.exitCode, 0);
    if (options.length === 0) assert.match(program.output(), 'Closed what was left: 1 connections.');
    assert.is(lab.snapshot('router'), before);
  }
});

// ---- sets from files ------------------------------------------------------------------------------------------------------------

test('SIGHUP reads sets again, live; a bad file is refused with file and line, and all stays as it was', async () => {
  const [excluded, ports] = ['/run/excluded', '/run/ports'];
  writeFileSync(excluded, `# nobody yet\n`);
  writeFileSync(ports, '81\n');
  const program = await start(
    '--exclude-to-file',
    excluded,
    '--exclude-to',
    '192.0.2.0/24',
    '--tcp-file',
    ports,
    '--metrics',
    '127.0.0.1:9100',
  );
  const total = async () => (await metrics()).get('linux_tproxy_relay_connections_total') as number;
  const isRelayed = async (address: string = target, port = 80) => {
    const before = await total();
    assert.is(await ask(lab, 'client', address, port), port === 8080 ? 'other' : 'server');
    return (await total()) > before;
  };
  const open = await dial(lab, 'client', target, 80);
  assert.is(await isRelayed(), true);
  assert.is(await isRelayed(target, 8080), false);

  const reload = async (text: string, pattern: RegExp) => {
    const from = program.output().length;
    writeFileSync(excluded, text);
    program.process.kill('SIGHUP');
    await until(() => pattern.test(program.output().slice(from)), `${pattern} in ${program.output()}`);
  };
  writeFileSync(ports, '81, 8080 # and the other\n');
  await reload(`${target}/32\n\n2001:db8::/32 # and these\n`, /Read again: tcp has 3, exclude-to has 3\.\n/);
  assert.is(await isRelayed(), false);
  assert.is(await isRelayed(addresses.server.ipv6), true);
  assert.is(await isRelayed(addresses.server.ipv6, 8080), true);
  await open.echo('undisturbed');

  await reload(`${target}\n10.0.0.0/33\n`, /linux-tproxy relay: \/run\/excluded:2: a prefix length must be/);
  assert.is(await isRelayed(), false, 'as it was');
  await reload('', /Read again/);
  assert.is(await isRelayed(), true);
  const listed = lab.exec('router', 'nft', 'list', 'set', 'inet', 'linux-tproxy-50080', 'exclude_to4');
  assert.match(listed, /elements = \{ 192\.0\.2\.0\/24 \}/);
  await open.hangUp();
  await stop(program);

  const missing = await cli(lab, 'router', 'relay', '--port', '50080', '--tcp', '80', '--from-file', '/run/none');
  assert.is(missing.status, 1);
  assert.match(missing.stderr, /^linux-tproxy relay: .*ENOENT.*\/run\/none.*\n$/);
});

// ---- metrics ----------------------------------------------------------------------------------------------------------------------

/** Reads the text format as strictly as Prometheus' own promtool does; gives the samples. */
function samples(text: string): Map<string, number> {
  const values = new Map<string, number>();
  const families = new Map<string, { type?: string; help?: string }>();
  assert.ok(text.endsWith('\n'));
  let current = '';
  for (const line of text.slice(0, -1).split('\n')) {
    const [, kind, name = '', rest = ''] = line.match(/^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/) ?? [];
    if (kind) {
      if (name !== current) assert.not.ok(families.has(name), `${name} twice`);
      const family = families.get(name) ?? {};
      const key = kind.toLowerCase() as 'help' | 'type';
      assert.is(family[key], undefined, line);
      current = name;
      families.set(name, { ...family, [key]: rest });
      continue;
    }
    const sample = line.match(
      /^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_]\w*="[^"\\\n]*"(?:,(?!\})|(?=\})))*\})? (\S+)$/,
    );
    assert.ok(sample, `no sample: ${line}`);
    const [, metric, labels = '', value] = sample as unknown as string[];
    assert.is(metric, current, 'samples stand behind the lines of their family');
    const { type, help } = families.get(current) ?? {};
    assert.ok(help && (type === 'counter' || type === 'gauge'), current);
    assert.is(current.endsWith('_total'), type === 'counter', 'counters end in _total, and nothing else does');
    assert.not.ok(values.has(current + labels), `${line} twice`);
    assert.ok(Number.isFinite(Number(value)), line);
    values.set(current + labels, Number(value));
  }
  return values;
}

test('--metrics: what Prometheus can read, and what is true', async () => {
  const program = await start('--metrics', '127.0.0.1:9100', '--engine', 'epoll');
  const call = await dial(lab, 'client', target, 80);
  await call.echo('hello');
  const values = await metrics();
  for (const [name, value] of Object.entries({
    'linux_tproxy_relay_info{engine="epoll"}': 1,
    linux_tproxy_relay_connections_total: 1,
    linux_tproxy_relay_connections_open: 1,
    'linux_tproxy_relay_bytes_total{from="client"}': 6,
    'linux_tproxy_relay_moved_bytes_total{by="splice"}': 0,
    linux_tproxy_relay_pipes: 0,
    'linux_tproxy_relay_errors_total{call="connect"}': 0,
    'linux_tproxy_rule_packets_total{rule="intercepted"}': 1,
  }))
    assert.is(values.get(name), value, `${name} in\n${[...values.keys()].join('\n')}`);
  assert.ok((values.get('process_resident_memory_bytes') as number) > 1e6);
  assert.ok(Math.abs((values.get('process_start_time_seconds') as number) - Date.now() / 1000) < 60);
  assert.match(
    await lab.run('router', 'curl', '-sSI', 'http://127.0.0.1:9100/metrics'),
    /text\/plain; version=0\.0\.4/,
  );
  assert.match(await lab.run('router', 'curl', '-sSi', 'http://127.0.0.1:9100/'), /^HTTP\/1\.1 404/);
  await call.hangUp();
  await stop(program);
});

test('what cannot be started leaves nothing behind', async () => {
  const taken = await start('--metrics', '127.0.0.1:9100');
  const during = lab.snapshot('router');
  const second = await cli(lab, 'router', 'relay', '--port', '50081', '--tcp', '81', '--metrics', '127.0.0.1:9100');
  assert.is(second.status, 1);
  assert.match(second.stderr, /EADDRINUSE.*9100/);
  assert.is(lab.snapshot('router'), during);
  const third = await cli(lab, 'router', 'relay', '--port', '50080', '--tcp', '81');
  assert.is(third.status, 1);
  assert.match(third.stderr, /^linux-tproxy relay: .*EADDRINUSE.*\n$/);
  assert.is(lab.snapshot('router'), during);
  await stop(taken);
});

test.run();
