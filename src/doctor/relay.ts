/** What the relay is allowed of the kernel: without it connections are relayed too, only slower. */
import { readFileSync } from 'node:fs';
import { hasSplice, hasUring } from '../thread.js';
import type { Finding } from '../types.js';
import { ok } from './look.js';

/** What a relay asks for, for each direction with bulk under way. */
const PIPE_BYTES = 1 << 20;

export function relayFindings(): Finding[] {
  return [uring(), splice(), pipes()];
}

function uring(): Finding {
  const id = 'io-uring';
  if (hasUring()) return ok(id, 'io_uring is allowed', 'relays wait by it (engine uring)');
  const disabled = Number(readNumber('/proc/sys/kernel/io_uring_disabled') ?? 0);
  return {
    id,
    severity: 'warn',
    summary: 'io_uring is not allowed',
    detail: `relays wait by epoll instead (engine epoll): the same bytes, more system calls${disabled ? `; kernel.io_uring_disabled is ${disabled}` : ''}`,
    fix: disabled
      ? 'sysctl -w kernel.io_uring_disabled=0'
      : 'allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile (Docker: --security-opt seccomp=PROFILE), or run Linux 6.1 or newer',
  };
}

function splice(): Finding {
  const id = 'splice';
  if (hasSplice()) return ok(id, 'splice is allowed', 'bulk is moved inside the kernel');
  return {
    id,
    severity: 'warn',
    summary: 'splice is not allowed',
    detail: 'bulk is copied through the memory of the process instead (engine copy)',
    fix: 'allow splice in the seccomp profile',
  };
}

function pipes(): Finding {
  const id = 'pipes';
  const largest = readNumber('/proc/sys/fs/pipe-max-size');
  if (largest === undefined || largest >= PIPE_BYTES)
    return ok(id, `pipes may have ${(largest ?? PIPE_BYTES) >> 10} KiB`, 'bulk is moved in large pieces');
  return {
    id,
    severity: 'warn',
    summary: `pipes may have ${largest >> 10} KiB only`,
    detail: `bulk is moved in smaller pieces than it could (a relay asks for ${PIPE_BYTES >> 10} KiB)`,
    fix: `sysctl -w fs.pipe-max-size=${PIPE_BYTES}`,
  };
}

function readNumber(path: string): number | undefined {
  try {
    return Number(readFileSync(path, 'utf8'));
  } catch {
    return undefined;
  }
}
