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

// What a guard sends when its time has come: netlink messages one behind the other, without NLM_F_ACK.
struct Requests {
  std::span<const std::uint8_t> routing;  // to NETLINK_ROUTE
  // To NETLINK_NETFILTER, about a table that outlives the process: what it is asked by, taken over and deleted with.
  std::span<const std::uint8_t> question, takeover, removal;
};

// How long a table that outlives its owner is left for somebody else to take over.
struct Grace {
  std::uint32_t milliseconds = 0;
  std::uint32_t owner = 0;  // its netlink port
};

// In front of the requests.
struct Header {
  Grace grace;
  std::uint32_t question, takeover, routing, removal;  // sizes
};

// A guard that runs. Destroyed, it does its work as if the process had ended, and is waited for (though not for the
// grace).
class Process {
 public:
  // When this process ends, in whatever way, `requests` are sent through these sockets, of which the guard has copies
  // (the second, if there is none, is -1). It has CAP_NET_ADMIN where this process has it. Throws socket::Error.
  Process(int routeSocket, int nftablesSocket, const Requests& requests, Grace grace = {});
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() { work(); }

  // Ends the guard before it does anything.
  void disarm();
  // Has the guard do its work now, and waits for it, as above. The table has no owner, or another one, whose port may
  // have the old one's number.
  void release();
  // It becomes readable when the guard has ended.
  int pidfd() const { return child_->pidfd(); }

 private:
  void work();
  void write(std::span<const std::uint8_t> bytes);

  UniqueFd life_;
  std::optional<child::Process> child_;
};

}  // namespace tproxy::guard
