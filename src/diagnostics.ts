/**
 * Relays that open and close, told to whoever subscribes to two channels of node:diagnostics_channel:
 * `linux-tproxy.relay.open` (RelayOpened) and `linux-tproxy.relay.close` (RelayClosed).
 */
import { channel } from 'node:diagnostics_channel';
import type { RelayOpened, RelayResult } from './types.js';

const opened = channel('linux-tproxy.relay.open');
const closed = channel('linux-tproxy.relay.close');
const hasSubscribers = () => opened.hasSubscribers || closed.hasSubscribers;
let lastId = 0;

/** Tells of a relay that has opened, if anybody listens. What it gives tells of its end, and hands that on. */
export function tellRelay(describe: () => Omit<RelayOpened, 'id'>): (result: RelayResult) => RelayResult {
  if (!hasSubscribers()) return (result) => result;
  const message: RelayOpened = { id: ++lastId, ...describe() };
  opened.publish(message);
  return (result) => {
    closed.publish({ ...message, result });
    return result;
  };
}

/** Nothing tells when somebody subscribes, so it is looked at. */
const LOOK_MS = 1000;

/** Calls `onChange` whenever the first has subscribed or the last has gone, and at once if somebody has. What it gives ends that. */
export function watchSubscribers(onChange: (wanted: boolean) => void): () => void {
  let wanted = false;
  const look = () => {
    if (hasSubscribers() === wanted) return;
    wanted = !wanted;
    onChange(wanted);
  };
  look();
  const timer = setInterval(look, LOOK_MS).unref();
  return () => clearInterval(timer);
}
