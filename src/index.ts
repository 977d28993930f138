/** The public face of linux-tproxy: re-exports only. */
export { type ConnectTransparentOptions, connectTransparent, type TransparentConnection } from './connect.js';
export { type OriginalDestination, originalDestination } from './destination.js';
export { type DoctorOptions, doctor } from './doctor/doctor.js';
export { InterceptError, NetlinkError, type NetlinkMessageError, SocketError } from './errors.js';
export type { Count, Counters } from './intercept/counters.js';
export { type InstallOptions, installIntercept } from './intercept/install.js';
export type { InstalledEvents, InstalledRules } from './intercept/installation.js';
export {
  type Installed,
  type Leftovers,
  listInstalled,
  type Owner,
  type UninstallOptions,
  uninstallIntercept,
} from './intercept/installed.js';
export { type Plan, type PlanOptions, planIntercept } from './intercept/plan.js';
export type { LiveSets } from './intercept/sets.js';
export type { WatchEvents } from './intercept/watch.js';
export type { ListenOptions } from './listeners.js';
export { type Relay, type RelayOptions, relay } from './relay.js';
export {
  createTransparentServer,
  TransparentServer,
  type TransparentServerOptions,
  type TransparentSocket,
} from './server.js';
export type * from './types.js';
