/** Sockets that systemd has opened for this process: sd_listen_fds(3). */
import { noPassedSocket } from './errors.js';
import { native } from './native.js';

const FIRST = 3; // SD_LISTEN_FDS_START

/**
 * A duplicate of the listening socket of that name (`true`: of the only one), which the caller owns. The original stays, so
 * that what is closed can be opened again.
 */
export function passedListener(wanted: string | true, needs: { readonly transparent: boolean }): number {
  const { LISTEN_PID: pid, LISTEN_FDS: count, LISTEN_FDNAMES: names = '' } = process.env;
  if (pid === undefined || count === undefined)
    throw noPassedSocket(
      'systemd has passed no socket to this process: it is not the service of a started socket unit',
    );
  if (Number(pid) !== process.pid)
    throw noPassedSocket(
      `systemd has passed sockets to process ${pid}, and this is ${process.pid}: ExecStart= must start node itself, without npm, npx or a shell`,
    );
  const passed = Array.from({ length: Number(count) }, (_, index) => names.split(':')[index] || 'unknown');
  const found = passed.flatMap((name, index) => (wanted === true || name === wanted ? [FIRST + index] : []));
  const [fd] = found;
  if (fd === undefined || found.length > 1)
    throw noPassedSocket(
      `systemd has passed ${found.length} sockets${wanted === true ? '' : ` of the name '${wanted}'`}, and one is needed (there are: ${passed.join(', ')}). FileDescriptorName= in the [Socket] section names them, and each has a unit of its own`,
    );
  if (!native.inheritListener(fd) && needs.transparent)
    throw noPassedSocket(
      `The socket '${passed[fd - FIRST]}' that systemd has passed is not transparent: add Transparent=yes to the [Socket] section of its unit`,
    );
  return native.duplicate(fd);
}
