// Starting and ending the guard (main.cc), an executable that lies beside the addon and has its name: `x.node`,
// `x.guard`.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "unique_fd.h"

namespace tproxy::guard {

// Bytes of requests that a guard takes.
inline constexpr std::size_t capacity = 64 << 10;

// A guard that runs. Destroyed, it does its work as if the process had ended, and is waited for.
class Process {
 public:
  // When this process ends, in whatever way, `requests` (netlink messages one behind the other, without NLM_F_ACK) are
  // sent through `netlinkSocket`, of which the guard has a copy. It has CAP_NET_ADMIN where this process has it.
  // Throws socket::Error.
  Process(int netlinkSocket, std::span<const std::uint8_t> requests);
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
