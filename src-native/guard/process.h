// Starting and ending the guard (main.cc), and telling it what to do.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "child/process.h"
#include "unique_fd.h"

namespace tproxy::guard {

// The sockets of a guard, as its descriptors.
enum class Socket : std::uint32_t { route = 1, nftables = 2 };

// Netlink messages, without NLM_F_ACK, that are sent through a socket in one piece.
struct Datagram {
  Socket socket;
  std::vector<std::uint8_t> bytes;
};

// A table that outlives its owner: it has the grace to be taken over by somebody else.
struct Orphan {
  std::vector<std::uint8_t> question, takeover;  // what the table is asked by, and taken over with
  std::uint32_t graceMs, owner;                  // the netlink port of its owner
};

// Somebody else who has begun to use what was this process's: an nf_tables table that is not its `owner`'s and has one of
// these words in its name or comment.
struct Heir {
  std::uint32_t owner;             // a netlink port
  std::string words;               // each with a newline behind it
  std::vector<std::uint8_t> lock;  // what is committed before the look, or nothing
};

// ---- the memory that a guard shares with its parent ------------------------------------------------------------------

// In front of all that a guard has to do, of which `length` bytes follow: the two of Orphan (no question: no orphan), the two
// of Heir, then the datagrams. The owner is Orphan's or Heir's: there is one or the other, or neither.
struct Preface {
  std::uint32_t length, question, takeover, words, lock, graceMs, owner;
};
// In front of each datagram.
struct Header {
  Socket socket;
  std::uint32_t length;
};
struct Work {
  static constexpr std::size_t capacity = 128 << 10;
  Preface preface;
  char bytes[capacity];
};
// The one of two that counts: so its parent may be killed while it writes the other.
struct Orders {
  static constexpr std::uint32_t nothing = 2;
  std::atomic<std::uint32_t> current;
  Work work[2];
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
inline constexpr int ordersDescriptor = 3;

// ---- in the parent -----------------------------------------------------------------------------------------------------

// A guard that runs. Destroyed, it does its work as if the process had ended, and is waited for (though not for the
// grace).
class Process {
 public:
  // With copies of one or two sockets (-1: none), in the namespace at `netns` (empty: this thread's), where it looks for
  // heirs. It has CAP_NET_ADMIN where this process has it, and nothing to do yet.
  // Throws socket::Error.
  Process(int route, int nftables, const std::string& netns);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() { work(); }

  bool hasNftables() const { return hasNftables_; }
  // When this process ends, in whatever way, these are sent, one after the other, in place of what was to be sent before.
  // An orphan that is taken over by somebody else spares all of them, and so does an heir. To tell it takes no system
  // call. Throws socket::Error.
  void renew(std::span<const Datagram> datagrams, const Orphan* orphan, const Heir* heir);
  // It has nothing to do any more.
  void rest() { orders_->current = Orders::nothing; }

  // Has the guard do its work now, and waits for it, as above. The table has no owner, or another one, whose port may
  // have the old one's number.
  void release();
  // Ends the guard before it does anything.
  void disarm();

  // It becomes readable when the guard has ended.
  int pidfd() const { return child_->pidfd(); }

 private:
  void work();

  struct Unmap {
    void operator()(Orders* orders) const;
  };
  std::unique_ptr<Orders, Unmap> orders_;
  UniqueFd life_;
  std::optional<child::Process> child_;
  const bool hasNftables_;
};

}  // namespace tproxy::guard
