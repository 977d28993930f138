// Starting and ending the guard (main.cc), an executable that lies beside the addon and has its name: `x.node`,
// `x.guard`.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "unique_fd.h"

namespace tproxy::guard {

// Netlink messages, without NLM_F_ACK, that are sent through a socket in one piece.
struct Datagram {
  int socket;
  std::vector<std::uint8_t> bytes;
};

// How a datagram goes to the guard: this, then its bytes. `descriptor` is the socket's in the guard.
struct Header {
  std::uint32_t descriptor, length;
};
// Bytes that a guard takes.
inline constexpr std::size_t capacity = 128 << 10;

// A guard that runs. Destroyed, it does its work as if the process had ended, and is waited for.
class Process {
 public:
  // When this process ends, in whatever way, `work` is sent, one after the other. Its sockets, two different ones at the
  // most, the guard has copies of. It has CAP_NET_ADMIN where this process has it. Throws socket::Error.
  explicit Process(std::span<const Datagram> work);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();

  // Ends the guard before it does anything.
  void disarm();

 private:
  void reap();

  pid_t pid_ = -1;
  UniqueFd pidfd_, life_;
};

}  // namespace tproxy::guard
