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

// A table that outlives its owner: it has the grace to be taken over by somebody else.
struct Orphan {
  int socket;                                    // to NETLINK_NETFILTER
  std::vector<std::uint8_t> question, takeover;  // what the table is asked by, and taken over with
  std::uint32_t graceMs, owner;                  // the netlink port of its owner
};

// In front of all that goes to the guard; the two of Orphan follow. No question: no orphan.
struct Preface {
  std::uint32_t descriptor, question, takeover, graceMs, owner;
};

// How a datagram goes to the guard: this, then its bytes. `descriptor` is the socket's in the guard.
struct Header {
  std::uint32_t descriptor, length;
};
// Bytes that a guard takes.
inline constexpr std::size_t capacity = 128 << 10;

// A guard that runs. Destroyed, it does its work as if the process had ended, and is waited for (though not for the
// grace).
class Process {
 public:
  // When this process ends, in whatever way, these are sent, one after the other, through one or two sockets, of which the
  // guard has copies. It has CAP_NET_ADMIN where this process has it. Throws socket::Error.
  // An orphan that is taken over by somebody else spares all of them.
  explicit Process(std::span<const Datagram> datagrams, const Orphan* orphan = nullptr);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() { work(); }

  // Has the guard do its work now, and waits for it, as above. The table has no owner, or another one, whose port may
  // have the old one's number.
  void release();
  // Ends the guard before it does anything.
  void disarm();

  // It becomes readable when the guard has ended.
  int pidfd() const { return child_->pidfd(); }

 private:
  void work();
  void write(std::span<const std::uint8_t> bytes);

  UniqueFd life_;
  std::optional<child::Process> child_;
};

}  // namespace tproxy::guard
