/** What users and cgroups are called -> the numbers that the kernel compares. Reads the host, changes nothing. */
import { readFileSync, statfsSync, statSync } from 'node:fs';
import { InterceptError } from '../errors.js';
import type { InterceptOptions } from '../types.js';
import type { HostIds } from './plan.js';

/** Where systemd mounts cgroup v2: alone, or beside version 1. `nft` takes paths from the first one on. */
const CGROUP_ROOT = '/sys/fs/cgroup';
const CGROUP_MOUNTS = ['', 'unified/'];
const CGROUP2_SUPER_MAGIC = 0x63677270; // linux/magic.h

/** @throws {InterceptError} where there is no such user or cgroup. */
export function lookUpIds(ownHost: InterceptOptions['ownHost']): HostIds {
  if (ownHost === undefined || ownHost === true) return { users: {}, cgroups: {} };
  const names = (ownHost.users ?? []).filter((user) => typeof user === 'string' && !/^\d+$/.test(user));
  const users = names.length > 0 ? usersOf(readFileSync('/etc/passwd', 'utf8')) : new Map<string, number>();
  return {
    users: Object.fromEntries(names.map((name) => [name, userId(users, String(name))])),
    cgroups: Object.fromEntries((ownHost.cgroups ?? []).map((path) => [path, cgroupId(path)])),
  };
}

/** passwd(5): name, password, number, ... */
function usersOf(passwd: string): Map<string, number> {
  return new Map(
    passwd.split('\n').map((line) => {
      const [name = '', , id] = line.split(':');
      return [name, Number(id)];
    }),
  );
}

function userId(users: ReadonlyMap<string, number>, name: string): number {
  const id = users.get(name);
  if (id !== undefined) return id;
  throw new InterceptError(
    'ERR_TPROXY_NO_USER',
    `There is no user '${name}' in /etc/passwd. One who is known elsewhere (LDAP, ...) can be given by number: \`id -u ${name}\``,
    'check',
  );
}

function cgroupId(name: string): HostIds['cgroups'][string] {
  for (const mount of CGROUP_MOUNTS) {
    const path = `${mount}${name.replace(/^\//, '')}`;
    const directory = statSync(`${CGROUP_ROOT}/${path}`, { bigint: true, throwIfNoEntry: false });
    if (directory?.isDirectory() && statfsSync(`${CGROUP_ROOT}/${path}`).type === CGROUP2_SUPER_MAGIC)
      return { path, id: directory.ino };
  }
  throw new InterceptError(
    'ERR_TPROXY_NO_CGROUP',
    `There is no cgroup v2 '${name}' in ${CGROUP_ROOT}. The path of a process's own is in /proc/<pid>/cgroup, in the line that begins with 0::`,
    'check',
  );
}
