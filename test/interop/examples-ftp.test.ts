/**
 * examples/ftp-proxy between real clients and real servers, and against what is forged. The table in its README is made by
 * this test, and compared with what is there; `--write` writes it.
 */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent } from '../../src/index.js';
import { native } from '../../src/native.js';
import { startExample } from '../helpers/examples.js';
import { addresses, createLab, type Host, type Lab, type Program } from '../helpers/lab.js';
import { oneUser } from '../helpers/namespaces.js';
import { testUnless } from '../helpers/skip.js';
import { until } from '../helpers/wait.js';
import { families, listening } from '../helpers/web.js';

const test = suite('ftp-proxy');
const noUsers =
  oneUser && 'FTP servers change to users of their own, and a user namespace made without root has one only';

let lab: Lab;
let proxy: Program;
let before: string;
const original = randomBytes(1_000_003);
const otherClient = '10.77.9.9';
const otherServer = '10.77.8.8';

const servers = {
  vsftpd: {
    // setup.sh says why it is there.
    command: [fileURLToPath(new URL('../../build/peers/usr/sbin/vsftpd', import.meta.url)), '/run/vsftpd.conf'],
    log: '/run/vsftpd.log',
    /** An upload or download, and by whom. */
    logged: /OK (?:UP|DOWN)LOAD: Client "(?:::ffff:)?([^"]+)"/g,
    configuration: `
      listen=NO
      listen_ipv6=YES
      background=NO
      anonymous_enable=YES
      no_anon_password=YES
      anon_root=/run/ftp
      write_enable=YES
      anon_upload_enable=YES
      anon_umask=022
      connect_from_port_20=YES
      secure_chroot_dir=/run/empty
      xferlog_enable=YES
      vsftpd_log_file=/run/vsftpd.log
      ssl_enable=YES
      allow_anon_ssl=YES
      require_ssl_reuse=NO
      force_local_logins_ssl=NO
      force_local_data_ssl=NO
      rsa_cert_file=/run/server.pem
      seccomp_sandbox=NO`,
  },
  proftpd: {
    command: ['proftpd', '--nodaemon', '--config', '/run/proftpd.conf'],
    log: '/run/proftpd/log',
    logged: /^transfer (?:STOR|RETR) (?:::ffff:)?(\S+)/gm,
    configuration: `
      ServerType standalone
      UseIPv6 on
      UseReverseDNS off
      User proftpd
      Group nogroup
      ScoreboardFile /run/proftpd/scoreboard
      PidFile /run/proftpd/pid
      SystemLog none
      LogFormat transfer "transfer %m %a"
      DelayEngine off
      # Else it has no right to port 20 when it needs it.
      RootRevoke off
      <Anonymous /run/ftp>
        User ftp
        Group nogroup
        UserAlias anonymous ftp
        RequireValidShell off
        ExtendedLog /run/proftpd/log READ,WRITE transfer
      </Anonymous>`,
  },
} as const;
type ServerName = keyof typeof servers;

interface Errand {
  readonly active: boolean;
  readonly address: string;
  readonly url: string;
  /** The file to download to, and the name to upload it under again. */
  readonly file: string;
  readonly name: string;
}

/** Shell scripts that run it. */
const clients: Readonly<Record<string, (errand: Errand) => string>> = {
  curl: ({ active, url, file, name }) => `
    curl() { command curl -sS --max-time 60 ${active ? '--ftp-port -' : ''} "$@"; }
    curl -o ${file} ${url}/file && curl -T ${file} ${url}/up/${name}`,
  lftp: ({ active, url, file, name }) => `
    lftp -c 'set net:max-retries 1; set net:timeout 30; set ftp:passive-mode ${active ? 'off' : 'on'}; open ${url};
      get file -o ${file}; put ${file} -o up/${name}'`,
  ftp: ({ active, address, file, name }) => `
    printf '%s\\n' 'user anonymous nobody' binary 'get file ${file}' 'put ${file} up/${name}' quit |
      tnftp -n ${active ? '-A' : '-p'} ${address}`,
};

test.before(async () => {
  lab = await createLab({ moreAddresses: { client: [otherClient], server: [otherServer] } });
  for (const directory of ['ftp/up', 'empty', 'client', 'proftpd']) mkdirSync(`/run/${directory}`, { recursive: true });
  writeFileSync('/run/ftp/file', original);
  for (const [name, { configuration }] of Object.entries(servers))
    writeFileSync(`/run/${name}.conf`, configuration.replace(/^ +/gm, ''));
  const certificate = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=lab'];
  execFileSync('openssl', ['req', ...certificate, '-keyout', '/run/server.pem', '-out', '/run/server.crt'], {
    stdio: 'pipe',
  });
  writeFileSync('/run/server.pem', readFileSync('/run/server.crt'), { flag: 'a' });
  if (!noUsers) execFileSync('chown', ['ftp', '/run/ftp/up']);
  const { client, server } = addresses;
  count('client', 'input', `ip saddr != ${server.ipv4}`, `ip6 saddr != ${server.ipv6}`);
  count('server', 'input', `ip saddr != ${client.ipv4}`, `ip6 saddr != ${client.ipv6}`);
  before = lab.snapshot('router');
  count('router', 'forward', 'ip version 4', 'ip6 version 6');
  proxy = await startExample(lab, 'ftp-proxy');
});
test.after(() => lab.dispose());

// ---- packets that must not be, and those from port 20 -----------------------------------------------------------------------

function count(host: Host, hook: string, ...strangers: string[]): void {
  const rules = strangers.map((match) => `meta l4proto tcp ${match} counter name strangers`);
  const fromPort20 = 'tcp sport 20 tcp flags & (syn | ack) == syn counter name from20';
  const chain = `chain seen { type filter hook ${hook} priority 0; ${[...rules, fromPort20].join('; ')}; }`;
  lab.exec(host, 'nft', `table inet seen { counter strangers {}; counter from20 {}; ${chain}; }`);
}

function counted(host: Host, counter: 'strangers' | 'from20'): number {
  return Number(lab.exec(host, 'nft', 'list', 'counter', 'inet', 'seen', counter).match(/packets (\d+)/)?.[1]);
}

// ---- the matrix -----------------------------------------------------------------------------------------------------------

const columns = [true, false].flatMap((active) => families.map((family) => ({ active, family })));
type Column = (typeof columns)[number];
/** Of the table: which commands the client chose. */
const rows: string[] = [];

async function serve(name: ServerName): Promise<AsyncDisposable> {
  const [file, ...args] = servers[name].command;
  const program = lab.spawn('server', file, ...args);
  await listening(lab, 21, 'server').catch(() => assert.unreachable(program.output()));
  return { [Symbol.asyncDispose]: async () => void (await program.stop()) };
}

/** Downloads, uploads what it got, and compares. */
async function run(client: string, server: ServerName, { active, family }: Column): Promise<void> {
  const name = `${client}-${server}-${active ? 'active' : 'passive'}-${family}`;
  const address = addresses.server[family];
  const url = `ftp://${family === 'ipv6' ? `[${address}]` : address}`;
  const file = `/run/client/${name}`;
  const script = clients[client]?.({ active, address, url, file, name }) ?? '';
  const said = await lab.run('client', 'sh', '-c', script);
  for (const copy of [file, `/run/ftp/up/${name}`])
    assert.ok(readFileSync(copy).equals(original), `${copy} is not what it was: ${said}`);
}

/** The commands that the proxy saw in `log` for one download and one upload, each whole and ended. */
async function commands({ active, family }: Column, log: () => string): Promise<string> {
  const size = original.length;
  const transfer = `^${addresses.client[family]} > \\S+: (${active ? 'PORT|EPRT' : 'PASV|EPSV'}): (.*)$`;
  const transfers = () => [...log().matchAll(new RegExp(transfer, 'gm'))];
  await until(() => transfers().length >= 2, 'both are told').catch(() => {});
  assert.equal(
    transfers().map(([, , how]) => how),
    [`0 bytes up, ${size} bytes down, end`, `${size} bytes up, 0 bytes down, end`],
    log(),
  );
  return [...new Set(transfers().map(([, verb]) => verb))].join(', ');
}

for (const server of Object.keys(servers) as ServerName[])
  testUnless(
    noUsers,
    test,
    `${Object.keys(clients).join(', ')} and ${server}: byte for byte, and nobody sees a proxy`,
    async () => {
      await using _ = await serve(server);
      const from20 = counted('client', 'from20');
      for (const client of Object.keys(clients)) {
        const start = proxy.output().length;
        await Promise.all(columns.map((column) => run(client, server, column)));
        const log = () => proxy.output().slice(start);
        const cells = await Promise.all(columns.map((column) => commands(column, log)));
        rows.push(`| ${client} | ${server} | ${cells.map((cell) => `${cell} ↓↑`).join(' | ')} |`);
      }
      const each = Object.keys(clients).length * 2 * 2;
      const logged = () => [...readFileSync(servers[server].log, 'utf8').matchAll(servers[server].logged)];
      await until(() => logged().length >= 2 * each, 'all are logged').catch(() => {});
      const seen = logged().map(([, who]) => who);
      for (const family of families)
        assert.is(seen.filter((who) => who === addresses.client[family]).length, each, String(seen));
      for (const host of ['client', 'router', 'server'] as const) assert.is(counted(host, 'strangers'), 0, host);
      assert.is(counted('client', 'from20') - from20, (2 * each) / 2, 'every active transfer comes from port 20');
    },
  );

testUnless(noUsers, test, 'forty at once, active: all of them from port 20', async () => {
  await using _ = await serve('vsftpd');
  const from20 = counted('client', 'from20');
  for (let each = 1; each <= 40; each++) writeFileSync(`/run/ftp/${each}`, original.subarray(each * 1000, each * 2000));
  const curl = 'curl -sS --parallel --parallel-immediate --ftp-port - --max-time 60';
  await lab.run('client', 'sh', '-c', `${curl} -o '/run/client/#1' 'ftp://${addresses.server.ipv4}/[1-40]'`);
  for (let each = 1; each <= 40; each++)
    assert.ok(readFileSync(`/run/client/${each}`).equals(original.subarray(each * 1000, each * 2000)), String(each));
  assert.is(counted('client', 'from20') - from20, 40);
});

testUnless(noUsers, test, "the table in the README is this test's", () => {
  const path = new URL('../../examples/ftp-proxy/README.md', import.meta.url);
  const head = [
    '| client | server | active, IPv4 | active, IPv6 | passive, IPv4 | passive, IPv6 |',
    `|${'---|'.repeat(6)}`,
  ];
  const readme = readFileSync(path, 'utf8');
  const written = readme.replace(/(<!-- matrix -->\n).*(\n<!-- \/matrix -->)/s, `$1${[...head, ...rows].join('\n')}$2`);
  if (process.argv.includes('--write')) writeFileSync(path, written);
  else assert.is(readme, written, 'node --import tsx test/interop/examples-ftp.test.ts --write');
});

// ---- forged ---------------------------------------------------------------------------------------------------------------

interface Control {
  readonly socket: Socket;
  /** Sends a line, if any, and waits until `pattern` is in what came after the last line that was waited for. */
  say(line: string, pattern: RegExp): Promise<RegExpMatchArray>;
}

function control(socket: Socket): Control {
  let text = '';
  socket.on('data', (chunk) => {
    text += chunk.toString('latin1');
  });
  return {
    socket,
    async say(line, pattern) {
      if (line) socket.write(`${line}\r\n`, 'latin1');
      for (let waited = 0; ; waited += 10) {
        const match = text.match(pattern);
        if (match) {
          text = text.slice((match.index ?? 0) + match[0].length).replace(/^[^\n]+\n/, '');
          return match;
        }
        if (waited > 30_000) throw new Error(`${line}: no ${pattern} in: ${text}`);
        await sleep(10);
      }
    },
  };
}

/** A session with whatever serves there. */
async function session(family: (typeof families)[number] = 'ipv4'): Promise<Control> {
  const call = control(await dial('client', addresses.server[family], 21));
  await call.say('', /^220 .*\r\n/m);
  return call;
}

/** An ordinary program's connection: no mark, and errors are for whoever waits. */
async function dial(host: Host, address: string, port: number, localAddress?: string): Promise<Socket> {
  const from = localAddress === undefined ? {} : { localAddress };
  const socket = await connectTransparent({
    address,
    port,
    netns: lab.netns(host),
    mark: 0,
    timeoutMs: 30_000,
    ...from,
  });
  return socket.on('error', () => {});
}

interface Fake extends AsyncDisposable {
  /** All that came. */
  readonly heard: string[];
}

/** A server that answers each command as the test says; `undefined`: 200. */
async function fake(answer: (line: string) => string | undefined = () => undefined): Promise<Fake> {
  const heard: string[] = [];
  const sockets: Socket[] = [];
  const fd = native.openListener({
    address: '::',
    port: 21,
    backlog: 8,
    transparent: false,
    netns: lab.netns('server'),
  });
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {}).write('220-fake\r\n220 fake\r\n');
    socket.on('data', (chunk) => {
      for (const line of chunk.toString('latin1').split('\r\n').slice(0, -1)) {
        heard.push(line);
        socket.write(answer(line) ?? '200 done\r\n', 'latin1');
      }
    });
  });
  await once(server.listen({ fd }), 'listening');
  return {
    heard,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** The connection is reset; neither a byte nor the end may come before. */
async function reset(dialled: Promise<Socket>): Promise<void> {
  const came = dialled.then((socket) => Promise.race([once(socket, 'data'), once(socket, 'end')]));
  assert.is(await came.catch((error) => error.code), 'ECONNRESET');
}

/** Who listens in a host, as `ss` shows it. */
const listeners = (host: Host) =>
  lab
    .exec(host, 'ss', '-Hltn')
    .replace(/^\S+ +\d+ +\d+ +(\S+).*$/gm, '$1')
    .trim();

/** A server's data port, for as long as the test needs it. */
async function waitFor(host: Host, address: string, port: number, onConnection: (socket: Socket) => void) {
  const fd = native.openListener({ address, port, backlog: 8, transparent: false, netns: lab.netns(host) });
  const server = createServer(onConnection);
  await once(server.listen({ fd }), 'listening');
  return { port: native.socketAddress(fd).port, [Symbol.dispose]: () => void server.close() };
}

const server4 = addresses.server.ipv4;
const client4 = addresses.client.ipv4;

test('a 227 and a 229 arrive as they were said', async () => {
  const odd = 'Entering: 10,77,2,2,200,11 or so';
  await using _ = await fake((line) =>
    line === 'PASV' ? `227 ${odd}\r\n` : line === 'EPSV' ? '229 There (~~~51212~)\r\n' : undefined,
  );
  const { socket, say } = await session();
  assert.is((await say('PASV', /^.*\r\n/))[0], `227 ${odd}\r\n`);
  assert.match(listeners('router'), `${server4}:51211`);
  assert.is((await say('EPSV', /^.*\r\n/))[0], '229 There (~~~51212~)\r\n');
  assert.match(listeners('router'), `${server4}:51212`);
  await until(() => !listeners('router').includes(':51211'), 'the one before is forgotten');
  socket.destroy();
});

test('where the port is taken another one is told, and a foreign address is not believed', async () => {
  await using _ = await fake((line) => ({ PASV: '227 (10,77,1,1,200,10)\r\n', EPSV: '229 (|||51210|)\r\n' })[line]);
  using data = await waitFor('server', server4, 51210, (socket) => socket.end('data'));
  const call = await session();
  assert.is((await call.say('PASV', /^.*\r\n/))[0], '227 (10,77,2,2,200,10)\r\n');
  await proxy.until(/names 10\.77\.1\.1: not believed/);
  const other = await session();
  const [, port] = await other.say('EPSV', /^229 \(\|\|\|(\d+)\|\)\r\n/);
  assert.is.not(Number(port), data.port);
  for (const { say } of [call, other]) await say('NOOP', /^200/);
  const socket = await dial('client', server4, Number(port));
  assert.is(String(await once(socket, 'data').then(([chunk]) => chunk)), 'data');
  for (const each of [socket, call.socket, other.socket]) each.destroy();
});

test('a data port is for its client only, for one connection, and for its session', async () => {
  await using _ = await fake((line) => (line === 'EPSV' ? '229 (|||51210|)\r\n' : undefined));
  using __ = await waitFor('server', server4, 51210, (socket) => socket.end('data'));
  const { socket, say } = await session();
  await say('EPSV', /^229/);
  await reset(dial('client', server4, 51210, otherClient));
  const mine = await dial('client', server4, 51210);
  assert.is(String(await once(mine, 'data').then(([chunk]) => chunk)), 'data');
  await until(() => !listeners('router').includes(':51210'), 'it was for one');
  await say('EPSV', /^229/);
  socket.destroy();
  await until(() => !listeners('router').includes(':51210'), 'it ends with the session', 50_000); // of its own it would in 60 s
});

test('bounce attempts are refused, in whatever form, and the server never hears of them', async () => {
  await using server = await fake();
  const { socket, say } = await session();
  for (const [line, answer] of [
    ['PORT 10,77,9,9,200,10', '500 Illegal PORT'],
    ['PORT 10,77,1,2,0,25', '500 Illegal PORT'],
    ['port 10,77,9,9,200,10', '500 Illegal PORT'],
    ['PO\xff\xf1RT 10,77,9,9,200,10', '500 Illegal PORT'],
    ['PORT 10,77,1,2,200,300', '501 '],
    ['PORT 10,77,1,2,200', '501 '],
    ['EPRT |1|10.77.9.9|51210|', '500 Illegal EPRT'],
    ['EPRT |1|10.77.1.2|1023|', '500 Illegal EPRT'],
    ['EPRT |2|fd77:1::2|51210|', '522 Use (1)'],
    ['EPRT |2|10.77.1.2|51210|', '501 '],
    ['EPRT |1|10.77.1.2|65536|', '501 '],
    ['LPRT 4,4,10,77,9,9,2,200,10', '502 '],
    ['NOOP\rPORT 10,77,9,9,200,10', '500 '],
    [' PORT 10,77,9,9,200,10', '500 '],
    ['PORT\t10,77,9,9,200,10', '500 '],
    ['', '500 '],
  ] as const) {
    if (!line) socket.write('\n');
    const [said] = await say(line, /^.*\r\n/);
    assert.ok(said.startsWith(answer), `${line}: ${said}`);
  }
  assert.equal(server.heard, []);
  socket.destroy();
  const six = await session('ipv6');
  await six.say('PORT 10,77,1,2,200,10', /^522 Use \(2\)/);
  await six.say('EPRT |2|fd77:1::9|51210|', /^500 Illegal/);
  await six.say('EPRT |2|FD77:1:0::0:2|51210|', /^200/);
  assert.match(server.heard.join(), /^EPRT \|2\|fd77:1::2\|\d+\|$/);
  six.socket.destroy();
});

test('active: the server connects to the client, and nobody else can', async () => {
  await using server = await fake();
  const { socket, say } = await session();
  const arrived: Socket[] = [];
  using place = await waitFor('client', client4, 0, (data) => arrived.push(data));
  await say(`EPRT |1|${client4}|${place.port}|`, /^200/);
  const port = Number(server.heard.join().match(/^EPRT \|1\|10\.77\.1\.2\|(\d+)\|$/)?.[1]);
  await reset(dial('server', client4, port, otherServer));
  const data = await dial('server', client4, port);
  data.write('data');
  await until(() => arrived.length > 0, 'it is there');
  assert.is(arrived[0]?.remoteAddress, server4);
  assert.is(arrived[0]?.remotePort, data.localPort, "the server's own port, whatever it is");
  assert.is(String(await once(arrived[0] as Socket, 'data').then(([chunk]) => chunk)), 'data');
  for (const each of [data, socket, ...arrived]) each.destroy();
});

test('a client that refuses the connection: the server hears it by a reset, not by an end of file', async () => {
  await using server = await fake();
  const { socket, say } = await session();
  await say('PORT 10,77,1,2,200,10', /^200/);
  const [, high, low] = server.heard.join().match(/^PORT 10,77,1,2,(\d+),(\d+)$/) ?? [];
  await reset(dial('server', client4, Number(high) * 256 + Number(low)));
  socket.destroy();
});

test('after EPSV ALL nothing else; refusals wait for their turn; replies of many lines pass', async () => {
  const many = '211-Features:\r\n 229 (|||1|)\r\n211-\r\n211 End\r\n';
  await using server = await fake((line) => (line === 'FEAT' ? many : undefined));
  const { socket, say } = await session();
  socket.write('FEAT\r\nEPSV ALL\r\nPASV\r\nPORT 10,77,1,2,200,10\r\nEPRT |1|10.77.1.2|51210|\r\nNOOP\r\n');
  const only = '503 Only EPSV after EPSV ALL.\r\n';
  assert.is(
    (await say('', /^.*200 done\r\n(503[^\r]*\r\n)+200 done\r\n/s))[0],
    `${many}200 done\r\n${only.repeat(3)}200 done\r\n`,
  );
  assert.equal(server.heard, ['FEAT', 'EPSV ALL', 'NOOP']);
  socket.destroy();
});

test('AUTH TLS is refused', async () => {
  await using server = await fake();
  const { socket, say } = await session();
  await say('AUTH TLS', /^502 TLS is refused/);
  await say('auth ssl', /^502 TLS is refused/);
  assert.equal(server.heard, []);
  socket.destroy();
});

testUnless(noUsers, test, 'ABOR, urgent as clients send it, ends a transfer and not the session', async () => {
  execFileSync('truncate', ['-s', '1G', '/run/ftp/large']);
  const script = `
import ftplib, sys
ftp = ftplib.FTP(sys.argv[1], timeout=30)
ftp.login()
ftp.voidcmd('TYPE I')
data = ftp.transfercmd('RETR large')
assert len(data.recv(100000)) > 0
print(ftp.abort()[:3])
try:
    while data.recv(1 << 20): pass
except ConnectionResetError: pass
data.close()
print(ftp.voidresp()[:3])
print(ftp.sendcmd('NOOP')[:3], ftp.size('file'))
ftp.quit()`;
  for (const name of Object.keys(servers) as ServerName[]) {
    await using _ = await serve(name);
    for (const family of families)
      assert.match(
        await lab.run('client', 'python3', '-c', script, addresses.server[family]),
        /^426\n22[56]\n200 1000003\n$/,
        name,
      );
  }
});

test('SIGTERM takes it down, with a session in it, and the router is as it was', async () => {
  await using _ = await fake((line) => (line === 'EPSV' ? '229 (|||51210|)\r\n' : undefined));
  const { socket, say } = await session();
  await say('EPSV', /^229/);
  const closed = once(socket, 'close');
  assert.is(await proxy.stop(), 0, proxy.output());
  await closed;
  lab.exec('router', 'nft', 'delete', 'table', 'inet', 'seen');
  assert.is(lab.snapshot('router'), before);
});

testUnless(noUsers, test, '--tls pass: a session that nobody can look into, its data beside the proxy', async () => {
  proxy = await startExample(lab, 'ftp-proxy', '--tls', 'pass');
  await using _ = await serve('vsftpd');
  count('router', 'forward', 'ip version 4', 'ip6 version 6');
  const url = `ftp://${server4}`;
  const curl = 'curl -sS --insecure --ssl-reqd --max-time 60';
  const errand = `${curl} -o /run/client/tls ${url}/file; ${curl} -T /run/client/tls ${url}/up/tls`;
  await lab.run('client', 'sh', '-ec', errand);
  for (const copy of ['client', 'ftp/up']) assert.ok(readFileSync(`/run/${copy}/tls`).equals(original), copy);
  assert.ok(counted('router', 'strangers') > 100);
  assert.is(await proxy.stop(), 0, proxy.output());
});

test('a data port is open for the time it was given', async () => {
  proxy = await startExample(lab, 'ftp-proxy', '--data-timeout', '1');
  await using _ = await fake((line) => (line === 'EPSV' ? '229 (|||51210|)\r\n' : undefined));
  const { socket, say } = await session();
  await say('EPSV', /^229/);
  assert.match(listeners('router'), ':51210');
  await until(() => !listeners('router').includes(':51210'), 'that time is over');
  socket.destroy();
  assert.is(await proxy.stop(), 0, proxy.output());
});

test.run();
