// takes long
/** What the rules do with datagrams, with packets: default sysctls and hostile ones, IPv4 and IPv6. */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { everywhere, expresses } from '../helpers/backends.js';
import { addresses, createLab, type Lab } from '../helpers/lab.js';
import { install, stopAll } from '../helpers/proxies.js';
import { askUdp, proxyUdp, serveUdp } from '../helpers/udp.js';

for (const { backend, name, sysctls } of everywhere) {
  const test = suite(`datagrams of ${backend}, ${name} sysctls`);
  const on = { backend };
  let lab: Lab;
  test.before(async () => {
    lab = await createLab({ sysctls: { router: sysctls } });
    for (const port of [9053, 9060, 9100]) await serveUdp(lab, 'server', 'server', port);
    await serveUdp(lab, 'router', 'router', 9053);
    await proxyUdp(lab, 'router', 50080);
  });
  test.after.each(stopAll);
  test.after(() => lab.dispose());

  for (const family of ['ipv4', 'ipv6'] as const) {
    const client = addresses.client[family];
    const target = addresses.server[family];
    const ask = (port: number, options = {}) => askUdp(lab, 'client', target, port, options);

    test(`${family}: listed ports and ranges are intercepted, with the original destination; others go direct`, async () => {
      const rules = await install(lab, { ...on, udp: [9053, '9060-9069'] });
      assert.equal(await ask(9053, { from: client, port: 40001 }), ['proxy', client, '40001', target, '9053']);
      assert.equal((await ask(9060, { count: 3 }))[0], 'proxy');
      assert.equal((await ask(9100))[0], 'server');
      const { intercepted, dropped } = await rules.counters();
      assert.equal([intercepted.packets, dropped.packets], [4n, 0n]);
      await rules.uninstall();
      assert.equal((await ask(9053))[0], 'server');
    });

    test(`${family}: all ports; the router's own services stay reachable, from any source port`, async () => {
      await using rules = await install(lab, { ...on, udp: true });
      for (const port of [9053, 9060, 9100]) assert.equal((await ask(port))[0], 'proxy');
      for (const address of [addresses.router[family]])
        for (const options of [{}, { from: client, port: 9053 }])
          assert.equal((await askUdp(lab, 'client', address, 9053, options))[0], 'router');
      assert.equal((await askUdp(lab, 'router', target, 9100))[0], 'server', 'what the router asks is its own');
      assert.is((await rules.counters()).intercepted.packets, 3n);
    });

    test(`${family}: a spoofed question gets its answer, and learns of a closed port, if it has our mark`, async () => {
      await using rules = await install(lab, { ...on, udp: [9053] });
      const { socketMark: mark } = rules.plan;
      const spoofed = (port: number, options: object) =>
        askUdp(lab, 'router', target, port, { from: client, ...options });
      assert.equal((await spoofed(9053, { mark })).slice(0, 2), ['server', client]);
      assert.equal(await spoofed(9111, { mark }), ['ECONNREFUSED']);
      assert.equal(await spoofed(9053, { timeout: 0.4 }), ['ETIMEDOUT']);
    });

    test(`${family}: a question from a foreign address with the divert part alone`, async () => {
      await using rules = await install(lab, on);
      const mark = rules.plan.socketMark;
      const [who, sawAddress] = await askUdp(lab, 'router', target, 9053, { from: client, mark });
      assert.equal([who, sawAddress], ['server', client]);
    });

    test(`${family}: nobody listens: datagrams pass (open) or are dropped (closed)`, async () => {
      const rules = await install(lab, { ...on, udp: [9053], port: 50081 });
      if (expresses(backend, 'onDown open')) assert.equal((await ask(9053))[0], 'server');
      await rules.setOnDown('closed');
      assert.equal(await ask(9053, { timeout: 0.4 }), ['ETIMEDOUT']);
      assert.equal((await ask(9060))[0], 'server');
      if (expresses(backend, 'what is dropped is counted apart'))
        assert.is((await rules.counters()).dropped.packets, 1n);
      await rules.uninstall();
    });

    test(`${family}: live sets hold for datagrams too`, async () => {
      await using rules = await install(lab, { ...on, udp: [] });
      assert.equal((await ask(9053))[0], 'server');
      await rules.ports.udp.add('9050-9059');
      assert.equal((await ask(9053))[0], 'proxy');
      await rules.exclude.to.add(target);
      assert.equal((await ask(9053))[0], 'server');
      await rules.exclude.to.delete(target);
      assert.equal((await ask(9053))[0], 'proxy');
    });

    test(`${family}: interfaces`, async () => {
      for (const [link, who] of [
        ['cli0', 'proxy'],
        ['srv0', 'server'],
      ] as const) {
        await using _ = await install(lab, { ...on, udp: [9053], interfaces: [link] });
        assert.equal((await ask(9053))[0], who);
      }
    });
  }

  test.run();
}
