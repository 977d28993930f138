/**
 * Somebody who changes the rule set and the policy rules without a pause, by batches that are more than a watch is told of:
 * the kernel's notifications do not fit into the queue of a socket.
 */
import { NftablesSocket, type NftOperation, type RouteOperation, RouteSocket } from '../../src/netlink/index.js';

export interface Churn {
  /** How many batches it was. */
  stop(): Promise<number>;
}

/** `size`: of a set that comes and goes; of policy rules it is a quarter. */
export function churn(
  { name, priority, size }: { name: string; priority: number; size: number },
  netns?: string,
): Churn {
  const options = netns === undefined ? {} : { netns };
  const sockets = [new NftablesSocket(options), new RouteSocket(options)] as const;
  const [nftables, route] = sockets;
  const table = { kind: 'table', family: 'ip', name } as const;
  const set = { kind: 'set', family: 'ip', table: name, name: 's', keyType: 7, keyLength: 4 } as const;
  const elements = Array.from({ length: size }, (_, index) => ({ key: Uint8Array.of(10, 0, index >> 8, index & 255) }));
  const make: NftOperation[] = [
    { verb: 'add', object: table },
    { verb: 'add', object: set },
    { verb: 'add', object: { kind: 'elements', family: 'ip', table: name, set: 's', elements } },
  ];
  const rule = { family: 'ipv4', action: 'lookup', table: 7, priority } as const;
  const comeAndGo = Array.from(
    { length: size / 4 },
    (_, index): RouteOperation => ({ verb: index % 2 ? 'delete' : 'add', kind: 'rule', rule }),
  );
  let batches = 0;
  let going = true;
  const working = (async () => {
    for (; going; batches += 3) {
      await nftables.commit(make);
      await nftables.commit([{ verb: 'delete', object: table }]);
      await route.commit(comeAndGo);
    }
    await Promise.all(sockets.map((socket) => socket.close()));
  })();
  return {
    async stop() {
      going = false;
      await working;
      return batches;
    },
  };
}
