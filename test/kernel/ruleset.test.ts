// takes long
/**
 * What the rule set promises, with packets, once with the namespace's default sysctls and once with every hostile one
 * together; IPv4 and IPv6.
 */
import { once } from 'node:events';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent, createTransparentServer } from '../../src/index.js';
import type { InterceptOptions } from '../../src/types.js';
import { everywhere, expresses } from '../helpers/backends.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { python } from '../helpers/programs.js';
import { rulesOf, start, startProxy, stop, stopAll } from '../helpers/proxies.js';
import { ask, dial, greet, greeting, synRetransmissions } from '../helpers/talk.js';
import { until } from '../helpers/wait.js';

/** A server that ends its side a moment after the other one has. */
async function lingerer(lab: Lab, address: string) {
  const { native } = await import('../../src/native.js');
  const { createServer } = await import('node:net');
  const port = 9005;
  const netns = lab.netns('server');
  const fd = native.openListener({ address, port, backlog: 16, transparent: false, netns });
  const server = createServer({ allowHalfOpen: true });
  const ended = new Promise((resolve) =>
    server.once('connection', (socket) =>
      socket.resume().once('end', () => setTimeout(() => resolve(socket.end()), 200)),
    ),
  );
  await once(server.listen({ fd }), 'listening');
  return { port, ended, close: () => new Promise((resolve) => server.close(resolve)) };
}

for (const { backend, name, sysctls } of everywhere) {
  const test = suite(`rule set of ${backend}, ${name} sysctls`);
  const on = { backend };
  let lab: Lab;
  test.before(async () => {
    lab = await createLab({ sysctls: { router: sysctls } });
    for (const port of [80, 9001, 9002]) await greet(lab, 'server', 'server', port);
  });
  test.after.each(stopAll);
  test.after(() => lab.dispose());
  const timeWaits = () => lab.exec('router', 'ss', '-tanH', 'state', 'time-wait');

  for (const family of ['ipv4', 'ipv6'] as const) {
    const client = addresses.client[family];
    const target = addresses.server[family];

    test(`${family}: listed ports are intercepted, with the original destination; others go direct`, async () => {
      const server = await startProxy(lab, { ...on, tcp: [80, 9001] });
      const seen = once(server, 'connection');
      assert.is(await ask(lab, 'client', target, 80), 'proxy');
      const [socket] = await seen;
      assert.equal(socket.originalDestination, { family, address: target, port: 80 });
      assert.is(await ask(lab, 'client', target, 9001), 'proxy');
      assert.is(await ask(lab, 'client', target, 9002), 'server');
      await stop(server);
      assert.is(await ask(lab, 'client', target, 80), 'server');
    });

    test(`${family}: connections that are open live on through install and uninstall`, async () => {
      const before = await dial(lab, 'client', target, 80);
      assert.is(before.who, 'server');
      for (let round = 0; round < 2; round++) {
        const server = await startProxy(lab, { ...on, tcp: [80, 9001] });
        await before.echo(`installed ${round}`);
        assert.is(await ask(lab, 'client', target, 80), 'proxy');
        await stop(server);
        await before.echo(`uninstalled ${round}`);
      }
      await before.hangUp();
    });

    test(`${family}: the router's own services stay reachable on intercepted ports, from any source port`, async () => {
      const own = await greet(lab, 'router', 'router', 80);
      for (const intercept of [{ tcp: [80, 9001] }, { tcp: true as const }]) {
        const server = await startProxy(lab, { ...on, ...intercept });
        assert.is(await ask(lab, 'client', addresses.router[family], 80), 'router');
        assert.is(await ask(lab, 'client', addresses.routerUpstream[family], 80), 'router');
        assert.is(
          await ask(lab, 'client', addresses.router[family], 80, { localAddress: client, localPort: 9001 }),
          'router',
        );
        // The router's own connections out are nobody's to intercept.
        assert.is(await ask(lab, 'router', target, 80), 'server');
        assert.is(await ask(lab, 'client', target, 80), 'proxy');
        await stop(server);
      }
      await own.close();
    });

    test(`${family}: the same source port again at once, with our TIME_WAIT in the way`, async () => {
      const server = createTransparentServer(
        { intercept: { ...on, tcp: [80] }, netns: lab.netns('router') },
        (socket) => {
          socket.on('error', () => {});
          socket.end('proxy\n'); // we close first, so the TIME_WAIT is ours
        },
      );
      await start(server);
      for (let round = 0; round < 3; round++) {
        const repeated = synRetransmissions(lab, 'client');
        const call = await dial(lab, 'client', target, 80, { localAddress: client, localPort: 40000 });
        assert.is(call.who, 'proxy');
        call.socket.end();
        if (!call.socket.destroyed) await once(call.socket, 'close');
        await until(() => timeWaits().includes(':40000'), 'it is there');
        assert.is(synRetransmissions(lab, 'client'), repeated, 'no SYN was lost, or answered by a reset');
      }
      await stop(server);
    });

    test(`${family}: SYN cookies`, async () => {
      const cookies = () =>
        Number(/SyncookiesRecv\s+(\d+)/.exec(lab.exec('router', 'nstat', '-asz', 'TcpExtSyncookiesRecv'))?.[1]);
      const before = lab.exec('router', 'sysctl', '-n', 'net.ipv4.tcp_syncookies').trim();
      lab.exec('router', 'sysctl', '-qw', 'net.ipv4.tcp_syncookies=2');
      const server = await startProxy(lab, { ...on, tcp: [80, 9001] });
      const received = cookies();
      for (let round = 0; round < 5; round++) {
        const call = await dial(lab, 'client', target, 80);
        assert.is(call.who, 'proxy');
        await call.echo('through a cookie');
        await call.hangUp();
      }
      assert.is(cookies() - received, 5);
      const counters = await server.rules?.counters();
      assert.ok((counters?.remembered.packets ?? 0n) >= 5n, 'the cookies came by the remembered flows');
      await stop(server);
      lab.exec('router', 'sysctl', '-qw', `net.ipv4.tcp_syncookies=${before}`);
    });

    test(`${family}: a listener on a foreign address, on an intercepted port, gets its own connections`, async () => {
      const server = await startProxy(lab, { ...on, tcp: [80, 9001] });
      const foreign = createTransparentServer({ netns: lab.netns('router') }, (socket) => greeting('foreign', socket));
      await start(foreign, 9001, target);
      assert.is(await ask(lab, 'client', target, 9001), 'foreign');
      assert.is(await ask(lab, 'client', target, 80), 'proxy');
      await stop(foreign);
      assert.is(await ask(lab, 'client', target, 9001), 'proxy');
      await stop(server);
    });

    test(`${family}: a listener on a foreign address with the divert part alone, also on port 0`, async () => {
      const foreign = createTransparentServer({ intercept: on, netns: lab.netns('router') }, (socket) =>
        greeting('foreign', socket),
      );
      await start(foreign, 0, target);
      const port = foreign.address()?.port ?? 0;
      assert.is(await ask(lab, 'client', target, port), 'foreign');
      assert.is(await ask(lab, 'client', target, 80), 'server');
      await stop(foreign);
      assert.is(await ask(lab, 'client', target, port), 'ECONNREFUSED');
    });

    test(`${family}: a listener on a foreign address takes a connection on the tuple of one in TIME_WAIT`, async () => {
      const foreign = createTransparentServer({ intercept: on, netns: lab.netns('router') }, (socket) => {
        socket.on('error', () => {});
        socket.end('foreign\n'); // we close first, so the TIME_WAIT is ours
      });
      await start(foreign, 9004, target);
      for (let round = 0; round < 3; round++) {
        const call = await dial(lab, 'client', target, 9004, { localAddress: client, localPort: 40004 });
        assert.is(call.who, 'foreign');
        call.socket.end();
        if (!call.socket.destroyed) await once(call.socket, 'close');
        await until(() => timeWaits().includes(':40004'), 'it is there');
      }
      await stop(foreign);
    });

    test(`${family}: relayed connections reach the server from the client's own address`, async () => {
      const server = createTransparentServer({
        intercept: { ...on, tcp: [80] },
        relay: true,
        netns: lab.netns('router'),
      });
      await start(server);
      const call = await dial(lab, 'client', target, 80);
      assert.is(call.who, 'server');
      assert.is(call.sawAddress, client);
      assert.is(server.stats().connections.open, 1);
      await call.echo('hello');
      await call.hangUp();
      // Not relayed, it would have kept its source port: that it did not shows that there are two connections.
      assert.is.not(call.sawPort, call.socket.localPort);
      await stop(server);
    });

    test(`${family}: by the counters: intercepted once, answers diverted, also the last ones of an orphan`, async () => {
      const server = createTransparentServer({
        intercept: { ...on, tcp: [80] },
        relay: true,
        netns: lab.netns('router'),
      });
      await start(server);
      const rules = rulesOf(server);
      for (let round = 1n; round <= 3n; round++) {
        const call = await dial(lab, 'client', target, 80);
        assert.is(call.who, 'server');
        await call.hangUp();
        assert.is(
          (await rules.counters()).intercepted.packets,
          round,
          'what the relay sends itself is not intercepted',
        );
      }
      // We end first and forget the socket; the server ends a moment later.
      const late = await lingerer(lab, target);
      const outOfClient = () => lab.exec('client', 'nstat', '-asz', 'TcpOutRsts');
      const lastAcks = () => lab.exec('server', 'ss', '-tanH', 'state', 'last-ack');
      const [resets, { diverted }] = [outOfClient(), await rules.counters()];
      const netns = lab.netns('router');
      const socket = await connectTransparent({ address: target, port: late.port, localAddress: client, netns });
      socket.destroy();
      await late.ended;
      await new Promise((resolve) => setTimeout(resolve, 100));
      await until(() => lastAcks() === '', 'its end has been acknowledged');
      assert.is(outOfClient(), resets, 'the client has seen nothing of it');
      assert.ok((await rules.counters()).diverted.packets >= diverted.packets + 3n);
      await late.close();
      await stop(server);
    });

    test(`${family}: an upstream that refuses is a reset for the client`, async () => {
      const server = createTransparentServer({
        intercept: { ...on, tcp: [9003] },
        relay: true,
        netns: lab.netns('router'),
      });
      await start(server);
      assert.is(await ask(lab, 'client', target, 9003), 'ECONNRESET');
      assert.is(server.stats().connectErrors, 1);
      await stop(server);
    });

    test(`${family}: nobody listens: traffic passes (open) or is dropped (closed)`, async () => {
      const { installIntercept } = await import('../../src/index.js');
      const netns = lab.netns('router');
      for (const [onDown, who] of [
        ...(expresses(backend, 'onDown open') ? [['open', 'server'] as const] : []),
        ['closed', 'ETIMEDOUT'],
      ] as const) {
        await using rules = await installIntercept({ ...on, tcp: [80], port: 50081, onDown, netns });
        assert.is(await ask(lab, 'client', target, 80, who === 'server' ? {} : { timeoutMs: 700 }), who);
        assert.is(await ask(lab, 'client', target, 9002), 'server');
        const { dropped } = await rules.counters();
        if (expresses(backend, 'what is dropped is counted apart'))
          assert.is(dropped.packets > 0n, onDown === 'closed');
      }
    });

    test(`${family}: what is neither TCP nor UDP goes its way`, async () => {
      const raw = (...lines: string[]) =>
        python(
          [
            'import socket',
            `raw = socket.socket(socket.AF_INET${family === 'ipv6' ? '6' : ''}, socket.SOCK_RAW, 253)`,
            ...lines,
          ].join('\n'),
        );
      const server = await startProxy(lab, { ...on, tcp: true, udp: true });
      const [command, ...args] = raw("print('ready', flush=True)", 'print(*raw.recvfrom(99)[1][:1], flush=True)');
      const receiver = lab.spawn('server', command as string, ...args);
      await receiver.until(/^ready$/m);
      const [file, ...rest] = raw(`raw.sendto(b'x', ('${target}', 0))`);
      lab.exec('client', file as string, ...rest);
      await receiver.until(new RegExp(`^${client}$`, 'm'), 10_000);
      await stop(server);
    });

    test(`${family}: from, to and exclude decide by prefix`, async () => {
      const prefix = {
        ipv4: ['10.77.1.0/24', '10.77.2.0/24', '10.99.0.0/16'],
        ipv6: ['fd77:1::/64', 'fd77:2::/64', 'fd99::/16'],
      }[family];
      const [clients = '', servers = '', elsewhere = ''] = prefix;
      const cases: [InterceptOptions, string][] = [
        [{ tcp: [80], from: [clients] }, 'proxy'],
        [{ tcp: [80], from: [elsewhere] }, 'server'],
        [{ tcp: [80], to: [servers] }, 'proxy'],
        [{ tcp: [80], to: [elsewhere] }, 'server'],
        [{ tcp: [80], exclude: { from: [client] } }, 'server'],
        [{ tcp: [80], exclude: { to: [servers] } }, 'server'],
        [{ tcp: [80], exclude: { to: [elsewhere] } }, 'proxy'],
        [{ tcp: [80], interfaces: ['cli0'] }, 'proxy'],
        [{ tcp: [80], interfaces: ['srv0'] }, 'server'],
        [{ tcp: [80], families: [family] }, 'proxy'],
        [{ tcp: [80], families: [family === 'ipv4' ? 'ipv6' : 'ipv4'] }, 'server'],
      ];
      for (const [intercept, who] of cases) {
        const server = await startProxy(lab, { ...on, ...intercept });
        assert.is(await ask(lab, 'client', target, 80), who, JSON.stringify(intercept));
        await stop(server);
      }
    });

    test(`${family}: a connection from a foreign address hears by ICMP that its destination cannot be reached`, async () => {
      const netns = lab.netns('router');
      const far = { ipv4: '10.79.0.1', ipv6: 'fd79::1' }[family];
      const sh = (host: 'router' | 'server', script: string) => lab.exec(host, 'sh', '-euc', script);
      sh('server', `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip route add unreachable ${far}`);
      sh('router', `ip route add ${far} via ${target}`);
      const attempt = () =>
        connectTransparent({ address: far, port: 80, localAddress: client, netns, timeoutMs: 1500 }).then(
          () => 'connected',
          ({ code }) => code,
        );
      const server = await start(createTransparentServer({ intercept: on, netns }));
      assert.is(await attempt(), { ipv4: 'EHOSTUNREACH', ipv6: 'ENETUNREACH' }[family], 'as each makes of it');
      await stop(server);
      assert.is(await attempt(), 'ETIMEDOUT', 'without the rules the client gets what is meant for us');
      sh('router', `ip route del ${far}`);
      sh('server', `ip route del unreachable ${far}`);
    });

    test(`${family}: a connection from a foreign address learns its path's MTU`, async () => {
      // The server forwards into a link of 1300 bytes, of which neither end knows: the router must be told.
      const [near, far] = family === 'ipv4' ? ['10.78.0.1', '10.78.0.2'] : ['fd78::1', 'fd78::2'];
      const length = family === 'ipv4' ? 24 : 64;
      const ip = family === 'ipv4' ? '-4' : '-6';
      lab.exec(
        'server',
        'sh',
        '-euc',
        `
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip netns add far
        ip link add far0 type veth peer name eth0 netns far
        ip link set far0 mtu 1300 up; ip -n far link set eth0 up; ip -n far link set lo up
        ip address add ${near}/${length} dev far0 nodad; ip -n far address add ${far}/${length} dev eth0 nodad
        ip ${ip} -n far route add default via ${near}`,
      );
      lab.exec('router', 'ip', ip, 'route', 'add', `${far}/${family === 'ipv4' ? 32 : 128}`, 'via', target);
      const { native } = await import('../../src/native.js');
      const { createServer } = await import('node:net');
      const fd = native.openListener({
        address: far,
        port: 80,
        backlog: 16,
        transparent: false,
        netns: '/run/netns/far',
      });
      let received = 0;
      const sink = createServer((socket) => {
        socket.on('data', (chunk) => {
          received += chunk.length;
        });
        socket.on('end', () => socket.end(`${received}\n`));
      });
      await once(sink.listen({ fd }), 'listening');
      sink.unref();
      const server = createTransparentServer({ intercept: on, netns: lab.netns('router') });
      await start(server);
      const socket = await connectTransparent({
        address: far,
        port: 80,
        localAddress: client,
        netns: lab.netns('router'),
        allowHalfOpen: true,
      });
      socket.end(Buffer.alloc(300_000, 'x'));
      const [answer] = await once(socket, 'data', { signal: AbortSignal.timeout(30_000) }); // else it is a black hole
      assert.is(String(answer), '300000\n');
      assert.match(lab.exec('router', 'ip', ip, 'route', 'get', far), /mtu 1300/);
      socket.destroy();
      await new Promise((resolve) => sink.close(resolve));
      await stop(server);
      lab.exec('server', 'sh', '-euc', 'ip link delete far0; ip netns delete far');
      lab.exec('router', 'ip', ip, 'route', 'delete', `${far}/${family === 'ipv4' ? 32 : 128}`);
    });
  }

  test('after all this the router is as it was', async () => {
    const before = lab.snapshot('router');
    const server = await startProxy(lab, { ...on, tcp: true, exclude: { to: ['10.99.0.0/16'] } });
    assert.is.not(lab.snapshot('router'), before);
    await stop(server);
    assert.is(lab.snapshot('router'), before);
    assert.is(before.includes('proto 84'), false);
  });

  test.run();
}
