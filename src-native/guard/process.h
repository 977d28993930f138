// Starting and ending the guard (main.cc).
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "child/process.h"
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
  // When this process ends, in whatever way, these are sent, one after the other, through one or two sockets, of which the
  // guard has copies. It has CAP_NET_ADMIN where this process has it. Throws socket::Error.
  explicit Process(std::span<const Datagram> datagrams);
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
