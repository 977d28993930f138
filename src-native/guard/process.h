// Starting and ending the guard (main.cc).
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "child/process.h"
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
  ~Process() { work(); }

  // Has the guard do its work now, and waits for it.
  void work();
  // Ends the guard before it does anything.
  void disarm();

 private:
  UniqueFd life_;
  std::optional<child::Process> child_;
};

}  // namespace tproxy::guard
