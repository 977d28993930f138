/** What this process may do. Looked at first: without CAP_NET_ADMIN nothing else can be seen. */
import { readFileSync } from 'node:fs';
import { NetlinkError, SocketError } from '../errors.js';
import type { Kernel } from '../intercept/kernel.js';
import { native } from '../native.js';
import type { Finding } from '../types.js';
import { ok } from './look.js';

const GIVE =
  'as root; or `setcap cap_net_admin+ep "$(readlink -f "$(command -v node)")"`; in a systemd unit AmbientCapabilities=CAP_NET_ADMIN; for a container --cap-add NET_ADMIN';
/** Two descriptors for each relayed connection. */
const FEW_FILES = 8192;

export async function privileges({ nftables }: Kernel, netns: string | undefined): Promise<Finding[]> {
  return [await admin(nftables), transparent(netns), openFiles()];
}

async function admin(nftables: Kernel['nftables']): Promise<Finding> {
  try {
    await nftables.list('table');
    return ok('net-admin', 'may change rules', 'CAP_NET_ADMIN in this network namespace');
  } catch (error) {
    if (!(error instanceof NetlinkError && error.code === 'EPERM')) throw error;
    return {
      id: 'net-admin',
      severity: 'fail',
      summary: 'may not change or see rules',
      detail:
        "CAP_NET_ADMIN is missing in this network namespace; so this host's rules were not looked at, and nothing is said of them here",
      fix: GIVE,
    };
  }
}

function transparent(netns: string | undefined): Finding {
  const id = 'transparent-sockets';
  try {
    const options = { address: '127.0.0.1', port: 0, backlog: 1, transparent: true, ...(netns && { netns }) };
    native.closeDescriptor(native.openListener(options));
    return ok(id, 'may listen on and connect from foreign addresses', 'IP_TRANSPARENT can be set');
  } catch (error) {
    if (!(error instanceof SocketError)) throw error;
    return {
      id,
      severity: 'fail',
      summary: 'may not listen on or connect from foreign addresses',
      detail: error.message,
      fix: GIVE,
    };
  }
}

function openFiles(): Finding {
  const [, limit = ''] = /^Max open files +(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
  const few = Number(limit) < FEW_FILES;
  return {
    id: 'open-files',
    severity: few ? 'warn' : 'ok',
    summary: `may open ${limit} files`,
    detail: 'a relayed connection takes two descriptors',
    ...(few && { fix: `ulimit -Hn ${FEW_FILES * 8}; in a systemd unit LimitNOFILE=${FEW_FILES * 8}` }),
  };
}
