// Starting and ending the guard (main.cc), an executable that lies beside the addon and has its name: `x.node`,
// `x.guard`.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>

#include "unique_fd.h"

namespace tproxy::guard {

// Bytes of requests that a guard takes.
inline constexpr std::size_t capacity = 64 << 10;

// A guard. Destroyed, it does its work as if the process had ended, and is waited for.
class Process {
 public:
  // Nothing runs yet.
  Process() = default;
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();

  // The guard gets a copy of `netlinkSocket`, and CAP_NET_ADMIN where this process has it. Throws socket::Error, the same
  // again at each further call; otherwise those do nothing.
  void start(int netlinkSocket);
  // When this process ends, in whatever way, `requests` (netlink messages one behind the other, without NLM_F_ACK) are
  // sent through its socket. Throws socket::Error.
  void arm(std::span<const std::uint8_t> requests);
  // Ends the guard before it does anything.
  void disarm();

 private:
  void reap();

  std::mutex mutex_;
  bool started_ = false;
  std::exception_ptr failure_;
  pid_t pid_ = -1;
  UniqueFd pidfd_, life_;
};

}  // namespace tproxy::guard
