/**
 * The relay threads of this environment, one per network namespace (more where `threads` or both pollers are used), started
 * when first needed. Hands each event to whoever waits for its id, and keeps the process alive while something is under way.
 */
import { statSync } from 'node:fs';
import { type NativeRelayEvent, type NativeRelayThread, native } from './native.js';
import type { Engine } from './types.js';

type Handler = (event: NativeRelayEvent) => void;

export class RelayThread {
  readonly native: NativeRelayThread;
  readonly #handlers = new Map<number, Handler>();
  readonly #whenIdle: () => void;
  #holds = 0;
  #brokerUsers = 0;

  /** `whenIdle` is called each time that nothing is under way any more. */
  constructor(options: ConstructorParameters<typeof native.RelayThread>[0], whenIdle: () => void) {
    this.#whenIdle = whenIdle;
    this.native = new native.RelayThread(options, (events) => {
      for (const event of events) this.#dispatch(event);
    });
    this.native.unref();
  }

  /** Events of this id (and, for a server, of its flows before they have handlers) go to the handler, until `forget`. */
  handle(id: number, handler: Handler): void {
    this.#handlers.set(id, handler);
  }

  forget(id: number): void {
    this.#handlers.delete(id);
  }

  get idle(): boolean {
    return this.#holds === 0 && this.#brokerUsers === 0;
  }

  /** Keeps the process alive until the function it gives is called. */
  hold(): () => void {
    if (this.#holds++ === 0) this.native.ref();
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      if (--this.#holds > 0) return;
      this.native.unref();
      this.#whenIdle();
    };
  }

  /** Sockets that this process may not open (any more) come from a child process with the privileges it has now. */
  startBroker(): () => void {
    if (this.#brokerUsers === 0) this.native.startBroker();
    this.#brokerUsers++;
    return () => {
      if (--this.#brokerUsers > 0) return;
      this.native.stopBroker();
      if (this.idle) this.#whenIdle();
    };
  }

  #dispatch(event: NativeRelayEvent): void {
    const id = 'server' in event ? event.server : event.id;
    this.#handlers.get(id)?.(event);
  }
}

const threads = new Map<string, RelayThread>();
/** A thread keeps its namespace from being freed: one without work goes soon. */
const IDLE_MS = 1000;

let uring: boolean | undefined;

/** Whether relay threads can wait by an io_uring here: asked once. */
export function hasUring(): boolean {
  uring ??= native.hasUring();
  return uring;
}

let splice: boolean | undefined;

/** Whether bulk can be moved inside the kernel here: asked once. */
export function hasSplice(): boolean {
  splice ??= native.hasSplice();
  return splice;
}

export const needsUring = (engine: Engine) => engine === 'uring' || engine === 'uring-splice';

/** The thread (of several, by index) for a namespace (a path), or for the process's own; `uring` has threads of its own. */
export function relayThread({
  netns,
  engine = hasUring() ? 'uring' : 'epoll',
  index = 0,
}: {
  netns?: string | undefined;
  engine?: Engine;
  index?: number;
}): RelayThread {
  const waitsBy = needsUring(engine) ? 'uring' : 'epoll';
  const key = `${waitsBy} ${index} ${namespaceOf(netns)}`;
  const known = threads.get(key);
  if (known) return known;
  const thread = new RelayThread({ ...(netns !== undefined && { netns }), engine: waitsBy }, () => {
    if (netns !== undefined) setTimeout(stopIfIdle, IDLE_MS).unref();
  });
  const stopIfIdle = () => {
    if (!thread.idle || threads.get(key) !== thread) return;
    threads.delete(key);
    thread.native.stop();
  };
  threads.set(key, thread);
  return thread;
}

/** A name may come to mean another namespace (`ip netns delete`, `ip netns add`); its inode never does. */
function namespaceOf(netns: string | undefined): string {
  if (netns === undefined) return '';
  const status = statSync(netns, { bigint: true, throwIfNoEntry: false });
  return status ? `${status.dev}:${status.ino}` : netns; // a missing one is told by whoever opens it
}

/** A broker for a server's relays, and for what connectTransparent connects in its namespace. Ends with what it gives. */
export function startBroker({
  netns,
  engine,
  threads,
}: {
  netns?: string | undefined;
  engine: Engine;
  threads: number;
}): () => void {
  const served = new Set([relayThread({ netns })]);
  for (let index = 0; index < threads; index++) served.add(relayThread({ netns, engine, index }));
  const ends = [...served].map((thread) => thread.startBroker());
  return () => {
    for (const end of ends) end();
  };
}
