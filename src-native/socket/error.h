// The one exception of the socket and relay code: a system call that failed, with what it was about.
#pragma once
#include <cerrno>
#include <string>
#include <system_error>

namespace tproxy::socket {

struct Error : std::system_error {
  Error(int errnum, const std::string& call, const std::string& where = {}, int atPort = -1)
      : std::system_error(errnum, std::generic_category(), where.empty() ? call : call + " " + where),
        syscall(call),
        address(where),
        port(atPort) {}
  int errnum() const { return code().value(); }

  std::string syscall;  // `bind`, `setsockopt IP_TRANSPARENT`, `open /run/netns/x`
  std::string address;  // empty and -1 where the call has none
  int port;
};

}  // namespace tproxy::socket
