/**
 * A worker thread that stands still for ever, for tests that terminate it there, while it has a descriptor or is about to get
 * one. Worker data: where to stand still, an engine, and two ports that accept and that do not. Tells when it stands there, or
 * which port is to be called before.
 */
import { Socket } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';
import type { Engine } from '../../src/types.js';
import { native, newCounters, Relays } from './relays.js';

const [place, engine, target, silent] = workerData as [keyof typeof places, Engine, number, number];
const relays = new Relays({ engine });
const standStill = () => {
  parentPort?.postMessage({ held: true });
  for (;;);
};
const listen = () => native.openListener({ address: '127.0.0.1', port: 0, backlog: 10, transparent: false });
const connect = (port: number) => relays.thread.connect({ address: '127.0.0.1', port });
const tellPort = (port: number) => parentPort?.postMessage({ port });

const places = {
  'with a listener': () => {
    listen();
    standStill();
  },
  'with a duplicate': () => {
    native.duplicate(listen());
    standStill();
  },
  'while it connects': () => {
    connect(silent);
    standStill();
  },
  'with a connection it has not heard of': () => {
    connect(target);
    setTimeout(standStill); // events come after it
  },
  'with a connection': async () => {
    await relays.event('connected', connect(target));
    standStill();
  },
  'with a connection in a Socket': async () => {
    new Socket({ fd: (await relays.event('connected', connect(target))).fd });
    standStill();
  },
  'with a socket that was accepted': async () => {
    tellPort(relays.listen(() => ({ kind: 'socket' })).port);
    await relays.event('socket');
    standStill();
  },
  'with a connection to decide about': async () => {
    tellPort(relays.listen(() => undefined).port);
    await relays.event('flow');
    standStill();
  },
  'with a relay that is about to begin': async () => {
    const [client, server] = [connect(target), connect(target)];
    const clientFd = (await relays.event('connected', client)).fd;
    const serverFd = (await relays.event('connected', server)).fd;
    relays.thread.relay({ clientFd, serverFd, engine, counters: newCounters() });
    standStill();
  },
};
void places[place]();
