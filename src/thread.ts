/**
 * The relay threads of this environment, one per network namespace, started when first needed. Hands each event to whoever
 * waits for its id, and keeps the process alive while something is under way.
 */
import { type NativeRelayEvent, type NativeRelayThread, native } from './native.js';

type Handler = (event: NativeRelayEvent) => void;

export class RelayThread {
  readonly native: NativeRelayThread;
  readonly #handlers = new Map<number, Handler>();
  #holds = 0;

  constructor(netns: string | undefined) {
    this.native = new native.RelayThread(netns === undefined ? {} : { netns }, (events) => {
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

  /** Keeps the process alive until the function it gives is called. */
  hold(): () => void {
    if (this.#holds++ === 0) this.native.ref();
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      if (--this.#holds === 0) this.native.unref();
    };
  }

  #dispatch(event: NativeRelayEvent): void {
    const id = 'server' in event ? event.server : event.id;
    this.#handlers.get(id)?.(event);
  }
}

const threads = new Map<string, RelayThread>();

/** The thread for a namespace (a path), or for the process's own. */
export function relayThread(netns?: string): RelayThread {
  const key = netns ?? '';
  let thread = threads.get(key);
  if (!thread) {
    thread = new RelayThread(netns);
    threads.set(key, thread);
  }
  return thread;
}
