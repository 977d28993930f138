// takes long
/** What this host itself sends, intercepted: with packets, default sysctls and hostile ones, IPv4 and IPv6. */
import { randomUUID } from 'node:crypto';
import { mkdirSync, rmdirSync, statfsSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { connectTransparent, createTransparentServer, relay, type TransparentSocket } from '../../src/index.js';
import type { InterceptOptions } from '../../src/types.js';
import { everywhere, expresses } from '../helpers/backends.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { oneUser } from '../helpers/namespaces.js';
import { install, rulesOf, start, startProxy, stop, stopAll } from '../helpers/proxies.js';
import { testUnless } from '../helpers/skip.js';
import { ask, dial, greet } from '../helpers/talk.js';
import { askUdp, proxyUdp, serveUdp } from '../helpers/udp.js';
import { until } from '../helpers/wait.js';

const NOBODY = 65534;
const cgroupMount = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'].find((path) => {
  try {
    return statfsSync(path).type === 0x63677270; // CGROUP2_SUPER_MAGIC
  } catch {
    return false;
  }
});

/** A cgroup of our own with one below it; why not, if not. */
function makeCgroup(path: string): string | undefined {
  try {
    mkdirSync(`${cgroupMount}/${path}/inner`, { recursive: true });
    return cgroupMount ? undefined : 'no cgroup v2 is mounted';
  } catch (error) {
    return (error as Error).message;
  }
}

for (const { backend, name, sysctls } of everywhere) {
  const test = suite(`own host of ${backend}, ${name} sysctls`);
  const on = { backend };
  let lab: Lab;
  let netns: string;
  test.before(async () => {
    lab = await createLab({ sysctls: { router: sysctls } });
    netns = lab.netns('router');
    for (const port of [80, 9001, 9002]) await greet(lab, 'server', 'server', port);
    for (const port of [9053, 9100]) await serveUdp(lab, 'server', 'server', port);
    await serveUdp(lab, 'router', 'router', 9053);
    await proxyUdp(lab, 'router', 50080);
  });
  test.after.each(stopAll);
  test.after(() => lab.dispose());

  for (const family of ['ipv4', 'ipv6'] as const) {
    const own = addresses.routerUpstream[family];
    const client = addresses.client[family];
    const target = addresses.server[family];

    test(`${family}: intercepted, with the original destination, beside what comes from outside`, async () => {
      const server = await startProxy(lab, { ...on, tcp: [80, 9001], ownHost: true });
      const seen = new Promise<TransparentSocket>((resolve) => server.once('connection', resolve));
      const call = await dial(lab, 'router', target, 80);
      assert.equal([call.who, call.sawAddress], ['proxy', own]);
      assert.equal((await seen).originalDestination, { family, address: target, port: 80 });
      await call.echo('both ways');
      await call.hangUp();
      assert.is(await ask(lab, 'router', target, 9002), 'server');
      assert.is(await ask(lab, 'client', target, 9001), 'proxy');
      assert.is(await ask(lab, 'client', target, 9002), 'server');
      await stop(server);
      assert.is(await ask(lab, 'router', target, 80), 'server');
    });

    test(`${family}: what the proxy sends is not intercepted again: relays, and connectTransparent`, async () => {
      const relaying = await start(
        createTransparentServer({ intercept: { ...on, tcp: true, ownHost: true }, relay: true, netns }),
      );
      for (const host of ['router', 'client'] as const) {
        const call = await dial(lab, host, target, 80);
        assert.equal([call.who, call.sawAddress], ['server', host === 'router' ? own : client]);
        await call.echo('hello');
        await call.hangUp();
      }
      assert.is(relaying.stats().connections.total, 2);
      await stop(relaying);

      let accepted = 0;
      const byHand = createTransparentServer(
        { intercept: { ...on, tcp: true, ownHost: true }, netns },
        async (socket) => {
          if (++accepted > 10) return socket.destroy();
          const { address, port } = socket.originalDestination;
          const localAddress = socket.remoteAddress?.replace('::ffff:', '') ?? '';
          relay(socket, await connectTransparent({ address, port, localAddress, netns }));
        },
      );
      await start(byHand);
      for (const host of ['router', 'client'] as const) assert.is(await ask(lab, host, target, 80), 'server');
      assert.is(accepted, 2);
      // The control: without the mark it comes back to us.
      const loop = await connectTransparent({ address: target, port: 80, netns, mark: 0 });
      await new Promise((resolve) => loop.once('data', resolve));
      assert.is(accepted, 3);
      loop.destroy();
      await stop(byHand);
    });

    test(`${family}: open connections live on through install and uninstall`, async () => {
      const before = await dial(lab, 'router', target, 80);
      assert.is(before.who, 'server');
      for (let round = 0; round < 2; round++) {
        const server = await startProxy(lab, { ...on, tcp: true, ownHost: true });
        await before.echo(`installed ${round}`);
        await stop(server);
        await before.echo(`uninstalled ${round}`);
      }
      await before.hangUp();
    });

    test(`${family}: the host's own services answer clients and the host itself, all ports intercepted`, async () => {
      const service = await greet(lab, 'router', 'router', 80);
      const server = await startProxy(lab, { ...on, tcp: true, ownHost: true });
      for (const address of [addresses.router[family], own]) {
        assert.is(await ask(lab, 'client', address, 80), 'router');
        assert.is(await ask(lab, 'client', address, 80, { localAddress: client, localPort: 9001 }), 'router');
        assert.is(await ask(lab, 'router', address, 80), 'router');
      }
      assert.is(await ask(lab, 'router', family === 'ipv4' ? '127.0.0.1' : '::1', 80), 'router');
      await stop(server);
      await service.close();
    });

    test(`${family}: an excluded destination goes direct`, async () => {
      const server = await startProxy(lab, { ...on, tcp: [80], ownHost: true });
      await rulesOf(server).exclude.to.add(target);
      assert.is(await ask(lab, 'router', target, 80), 'server');
      await rulesOf(server).exclude.to.delete(target);
      assert.is(await ask(lab, 'router', target, 80), 'proxy');
      await stop(server);
    });

    test(`${family}: interfaces limit what comes from outside only`, async () => {
      const server = await startProxy(lab, { ...on, tcp: [80], ownHost: true, interfaces: ['srv0'] });
      assert.is(await ask(lab, 'router', target, 80), 'proxy');
      assert.is(await ask(lab, 'client', target, 80), 'server');
      await stop(server);
    });

    test(`${family}: nobody listens: dropped, and never handed to a service of the host's own`, async () => {
      const service = await greet(lab, 'router', 'router', 80);
      const rules = await install(lab, { ...on, tcp: [80], ownHost: true, port: 50081 });
      for (const onDown of ['open', 'closed'] as const) {
        if (onDown === 'open' && !expresses(backend, 'onDown open')) continue;
        await rules.setOnDown(onDown);
        assert.is(await ask(lab, 'router', target, 80, { timeoutMs: 500 }), 'ETIMEDOUT');
        assert.is(await ask(lab, 'router', target, 9002), 'server');
        assert.is(await ask(lab, 'router', own, 80), 'router');
      }
      if (expresses(backend, 'what is dropped is counted apart'))
        assert.ok((await rules.counters()).dropped.packets >= 2n);
      await service.close();
    });

    test(`${family}: kept alive more often than the rules forget`, async () => {
      for (const options of [{ keepAliveInitialDelay: 3_600_000 }, { relay: true as const }]) {
        const server = await start(
          createTransparentServer({ ...options, intercept: { ...on, tcp: [9001], ownHost: true }, netns }),
        );
        const socket = await connectTransparent({ address: target, port: 9001, netns, mark: 0 });
        // The accepted socket is the one whose own address is the foreign one.
        const accepted = ['state', 'established', 'src', family === 'ipv6' ? `[${target}]` : target];
        const timers = () => lab.exec('router', 'ss', '-tnoH', ...accepted);
        await until(() => timers().includes('keepalive'), 'it is kept alive');
        assert.match(timers(), /keepalive,(5min|4min\d+sec)/);
        socket.destroy();
        await stop(server);
      }
    });

    test(`${family}: datagrams, own and forwarded; own services answer, all ports intercepted`, async () => {
      for (const udp of [[9053], true] as const) {
        await using _ = await install(lab, { ...on, udp, ownHost: true });
        const [who, , , ...originalDestination] = await askUdp(lab, 'router', target, 9053, { count: 3 });
        assert.equal([who, ...originalDestination], ['proxy', target, '9053']);
        assert.is((await askUdp(lab, 'client', target, 9053))[0], 'proxy');
        assert.is((await askUdp(lab, 'router', target, 9100))[0], udp === true ? 'proxy' : 'server');
        assert.is((await askUdp(lab, 'client', addresses.router[family], 9053))[0], 'router');
        assert.is((await askUdp(lab, 'router', own, 9053))[0], 'router');
        assert.is((await askUdp(lab, 'router', target, 9053, { mark: 3 }))[0], 'server', "the proxy's own questions");
        // An answer to a port that is intercepted is still an answer.
        assert.is((await askUdp(lab, 'router', target, 9053, { port: 9053, from: own, count: 2 }))[0], 'proxy');
      }
    });

    /** Who answers a program of this user, started by these words. */
    const askAs = async (...command: string[]) => {
      const script = `exec 3<>/dev/tcp/${target}/80; read -t 20 who rest <&3; echo $who`;
      return (await lab.run('router', ...(command as [string]), 'bash', '-c', script)).trim();
    };
    const asNobody = ['setpriv', `--reuid=${NOBODY}`, '--clear-groups'];

    testUnless(
      oneUser && 'there is one user only',
      test,
      `${family}: of some users only, by name or number; datagrams too`,
      async () => {
        for (const users of [['nobody'], [NOBODY, 'daemon'], [String(NOBODY)]]) {
          const server = await startProxy(lab, { ...on, tcp: [80], udp: [9053], ownHost: { users } });
          assert.is(await askAs(...asNobody), 'proxy');
          assert.is(await askAs('env'), 'server');
          assert.is((await askUdp(lab, 'router', target, 9053))[0], 'server');
          assert.is(await ask(lab, 'client', target, 80), 'proxy');
          await stop(server);
        }
        const server = await startProxy(lab, { ...on, tcp: [80], udp: [9053], ownHost: { users: ['root'] } });
        assert.is((await askUdp(lab, 'router', target, 9053))[0], 'proxy');
        assert.is(await askAs(...asNobody), 'server');
        await stop(server);
      },
    );

    const cgroup = `linux-tproxy-test-${randomUUID()}`; // process ids are the namespace's
    testUnless(makeCgroup(cgroup), test, `${family}: of some cgroups only, with those below`, async () => {
      makeCgroup(cgroup);
      try {
        const within = (path: string) => [
          'sh',
          '-euc',
          `echo $$ > ${cgroupMount}/${path}/cgroup.procs; exec "$@"`,
          'sh',
        ];
        const server = await startProxy(lab, { ...on, tcp: [80], ownHost: { cgroups: [`/${cgroup}`] } });
        assert.is(await askAs(...within(cgroup)), 'proxy');
        assert.is(await askAs(...within(`${cgroup}/inner`)), 'proxy');
        assert.is(await askAs('env'), 'server');
        await stop(server);
        const inner = await startProxy(lab, {
          ...on,
          tcp: [80],
          ownHost: { cgroups: [`${cgroup}/inner`], users: [NOBODY] },
        });
        assert.is(await askAs(...within(cgroup)), 'server');
        assert.is(await askAs(...within(`${cgroup}/inner`)), 'proxy');
        assert.is(await askAs(...asNobody), 'proxy');
        await stop(inner);
      } finally {
        rmdirSync(`${cgroupMount}/${cgroup}/inner`);
        rmdirSync(`${cgroupMount}/${cgroup}`);
      }
    });
  }

  test('a user or a cgroup that is not there is told, and nothing is installed', async () => {
    const before = lab.snapshot('router');
    for (const [ownHost, code, words] of [
      [{ users: ['no-such-user'] }, 'ERR_TPROXY_NO_USER', "'no-such-user'"],
      [{ cgroups: ['no/such.slice'] }, 'ERR_TPROXY_NO_CGROUP', "'no/such.slice'"],
    ] as [InterceptOptions['ownHost'], string, string][])
      await install(lab, { ...on, tcp: [80], ownHost: ownHost ?? true }).then(
        () => assert.unreachable(),
        (error) => {
          assert.is(error.code, code);
          assert.match(error.message, words);
        },
      );
    assert.is(lab.snapshot('router'), before);
  });

  test('after all this the router is as it was', async () => {
    const before = lab.snapshot('router');
    const server = await startProxy(lab, { ...on, tcp: true, udp: true, ownHost: true });
    assert.is.not(lab.snapshot('router'), before);
    await stop(server);
    assert.is(lab.snapshot('router'), before);
    assert.is(before.includes('proto 84'), false);
  });

  test.run();
}
