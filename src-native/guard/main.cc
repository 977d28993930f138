// The small process beside Node's, in one of two roles, by the name that it is run under. As the broker it does what
// broker/serve.h says.
//
// The guard: a process whose only work is to outlive another. The kernel deletes an owned nf_tables table when its
// owner dies, but keeps policy rules, routes and rules in tables of iptables; the guard deletes those. It is started
// with the requests in a pipe on its standard input, whose other end its parent holds open for life, and with netlink
// sockets as standard output and standard error. So it needs no namespace, no file and no argument (the one that it
// gets is for the eyes of `ps`), and links with libc only.
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "broker/serve.h"
#include "guard/process.h"

int main(int count, char** arguments) {
  // Out of the way of its parent's terminal, directory and inherited files. Its signals are blocked since before it
  // began (see Process): whatever ends the parent must not end it.
  setsid();
  if (chdir("/") != 0) return 1;
  syscall(SYS_close_range, 3U, ~0U, 0U);
  if (count > 0 && std::strstr(arguments[0], "broker")) return tproxy::broker::serve();

  static char requests[tproxy::guard::capacity + 1];
  size_t length = 0;
  for (;;) {
    const ssize_t size = read(STDIN_FILENO, requests + length, sizeof requests - length);
    if (size == 0) break;  // the parent is gone
    if (size > 0) length += static_cast<size_t>(size);
    if (size < 0 && errno != EINTR) return 1;
  }
  // The kernel works each datagram off inside the call. A request that fails (for what it is about is gone already) does
  // not keep it from the next one. The answers are for nobody.
  int failed = 0;
  tproxy::guard::Header header{};
  for (size_t at = 0; at + sizeof header <= length; at += header.length) {
    memcpy(&header, requests + at, sizeof header);
    at += sizeof header;
    if (header.length > length - at) return 1;  // cut short: nothing was installed yet
    if (send(static_cast<int>(header.descriptor), requests + at, header.length, 0) < 0) failed = 1;
  }
  return failed;
}
