/** examples/smtp-proxy between swaks and Debian's aiosmtpd: who gets mail, what STARTTLS does, and what is smuggled. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent } from '../../src/index.js';
import { startExample } from '../helpers/examples.js';
import { addresses, createLab, type Lab, type Program } from '../helpers/lab.js';
import { families } from '../helpers/web.js';

const test = suite('smtp-proxy');
let lab: Lab;
let server: Program;
let before: string;

/** Prints a line for each message: whom it sees, TLS or not, to whom, and what. It announces PIPELINING, and can do it. */
const smtpd = `
import ssl
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
class Handler:
    async def handle_EHLO(self, server, session, envelope, name, responses):
        session.host_name = name
        return responses[:1] + ['250-PIPELINING', '250-CHUNKING'] + responses[1:]
    async def handle_DATA(self, server, session, envelope):
        text = envelope.content.decode().replace('\\r\\n', '|')
        print('got', session.peer[0].replace('::ffff:', ''), 'tls' if session.ssl else 'plain', ','.join(envelope.rcpt_tos), len(text), text[-60:], flush=True)
        return '250 OK'
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain('/run/certificate', '/run/key')
login = lambda server, session, envelope, mechanism, data: AuthResult(success=data.password == b'right', handled=False)
for host in ['${addresses.server.ipv4}', '${addresses.server.ipv6}']:
    Controller(Handler(), hostname=host, port=25, tls_context=context, authenticator=login, auth_require_tls=False).start()
print('ready', flush=True)
import threading; threading.Event().wait()`;

test.before(async () => {
  lab = await createLab();
  const certificate = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=lab'];
  execFileSync('openssl', ['req', ...certificate, '-keyout', '/run/key', '-out', '/run/certificate'], {
    stdio: 'pipe',
  });
  before = lab.snapshot('router');
  // Debian's, for its modules.
  server = lab.spawn('server', '/usr/bin/python3', '-c', smtpd);
  await server.until(/ready/);
});
test.after(() => lab.dispose());

/** Mail by swaks: the whole dialogue, as swaks shows it. */
const swaks = (to: string, ...args: string[]) =>
  lab.run(
    'client',
    'sh',
    '-c',
    'swaks --timeout 30 --helo lab --from me@lab "$@" 2>&1 || true',
    'sh',
    '--to',
    to,
    ...args,
  );

interface Call {
  readonly socket: Socket;
  /** Sends this and waits until the answers so far match. */
  say(bytes: string, pattern: RegExp): Promise<string>;
}

async function call(): Promise<Call> {
  const to = { address: addresses.server.ipv4, port: 25, netns: lab.netns('client'), mark: 0, timeoutMs: 30_000 };
  const socket = await connectTransparent(to);
  socket.on('error', () => {});
  let text = '';
  socket.on('data', (chunk) => {
    text += chunk;
  });
  const say = async (bytes: string, pattern: RegExp) => {
    text = '';
    socket.write(bytes, 'latin1');
    const signal = AbortSignal.timeout(30_000);
    while (!pattern.test(text))
      await once(socket, 'data', { signal }).catch(() => assert.unreachable(`no ${pattern} in ${text}`));
    return text;
  };
  await say('', /^220 .*\r\n/);
  return { socket, say };
}

/** With a proxy of its own, which leaves nothing behind. */
function behind(args: string[], name: string, body: () => Promise<void>): void {
  test(name, async () => {
    const proxy = await startExample(lab, 'smtp-proxy', ...args);
    try {
      await body();
    } finally {
      assert.is(await proxy.stop(), 0, proxy.output());
    }
    assert.is(lab.snapshot('router'), before);
  });
}

const deny = ['--deny', 'bad.example', '--deny', '*.bad.example', '--deny', 'one@good.example'];

behind(deny, 'mail arrives from the client, but not for those that are denied', async () => {
  for (const family of families)
    for (const pipeline of [[], ['--pipeline']]) {
      const to = 'a@bad.example,two@good.example,one@good.example,b@x.bad.example';
      const shown = await swaks(to, '--server', addresses.server[family], '--body', `by ${family}`, ...pipeline);
      await server.until(
        new RegExp(`^got ${addresses.client[family]} plain two@good.example .*\\|by ${family}\\|`, 'm'),
      );
      for (const denied of ['a@bad.example', 'one@good.example', 'b@x.bad.example'])
        assert.match(shown, `550 5.7.1 <${denied}>: not on this way.`);
      assert.not.match(shown, /STARTTLS|CHUNKING/);
      assert.match(shown, '250-PIPELINING');
    }
  assert.not.match(server.output(), /bad\.example|one@/);
});

behind(deny, 'a large message, AUTH with a challenge, and what looks like a command in a message', async () => {
  const lines = Array.from({ length: 10_000 }, (_, index) => `RCPT TO:<a@bad.example> ${index}`).join('\n');
  writeFileSync('/run/body', `${lines}\n..\nthe end\n`);
  const login = (password: string) => ['--auth', 'LOGIN', '--auth-user', 'me', '--auth-password', password];
  const shown = await swaks(
    'two@good.example',
    '--server',
    addresses.server.ipv4,
    '--body',
    '/run/body',
    '--hide-all',
    ...login('right'),
  );
  const [, size] = await server.until(/^got \S+ plain two@good.example (\d+) .*9999\|\.\.\|the end/m);
  assert.ok(Number(size) > lines.length, shown);
  assert.match(await swaks('two@good.example', '--server', addresses.server.ipv4, ...login('wrong')), '535 ');
});

behind(deny, 'refusals wait for their turn among pipelined commands', async () => {
  const { socket, say } = await call();
  const commands = [
    'EHLO me',
    'MAIL FROM:<me@lab>',
    'RCPT TO:<a@bad.example>',
    'RCPT TO:<@relay:A@BAD.example>',
    'RCPT TO:<two@good.example>',
    'RCPT nobody',
    'DATA',
  ];
  const answers = await say(`${commands.join('\r\n')}\r\n`, /^354 .*\r\n$/m);
  const codes = [...answers.matchAll(/^(\d{3}) /gm)].map(([, code]) => code);
  assert.is(codes.join(' '), '250 250 550 550 250 501 354');
  assert.match(await say('piped\r\n.\r\nNOOP\r\nQUIT\r\n', /^221 .*\r\n/m), /^250 OK\r\n250 OK\r\n221 /);
  await server.until(/plain two@good.example 6 piped\|/);
  socket.destroy();
});

behind([], 'a second message cannot be hidden in the first', async () => {
  const start = 'EHLO me\r\nMAIL FROM:<me@lab>\r\nRCPT TO:<two@good.example>\r\nDATA\r\n';
  const hidden = 'MAIL FROM:<me@lab>\r\nRCPT TO:<smuggled@good.example>\r\nDATA\r\nx\r\n.\r\n';
  for (const end of ['\n.\n', '\n.\r\n', '\r.\r', '\r\n.\n', '\r\n.\r']) {
    const { socket, say } = await call();
    await say(start, /^354 /m);
    assert.match(await say(`first${end}${hidden}`, /\r\n/), /^550 5\.5\.2/, JSON.stringify(end));
    if (!socket.closed) await once(socket, 'close');
  }
  const { socket, say } = await call();
  await say('BDAT 5 LAST\r\nx\r\n.\r\n', /^502 /);
  if (!socket.closed) await once(socket, 'close');
  assert.not.match(server.output(), /smuggled|first/);
});

behind(
  ['--tls', 'require', ...deny],
  '--tls require: no mail in the open, and within TLS the proxy is blind',
  async () => {
    const to = ['--server', addresses.server.ipv4];
    assert.match(await swaks('two@good.example', ...to), '530 5.7.0 Must issue a STARTTLS');
    const shown = await swaks('a@bad.example', ...to, '--tls');
    assert.match(shown, /TLS started/, shown);
    await server.until(/^got 10\.77\.1\.2 tls a@bad\.example/m);
  },
);

behind([], 'STARTTLS is hidden by default, and refused', async () => {
  assert.match(
    await swaks('two@good.example', '--server', addresses.server.ipv4, '--tls'),
    /did not advertise STARTTLS/i,
  );
  const { socket, say } = await call();
  await say('STARTTLS\r\n', /^502 /);
  socket.destroy();
});

test.run();
