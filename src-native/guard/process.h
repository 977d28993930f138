// Starting and ending the guard (main.cc).
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
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

// Somebody else who has begun to use what was this process's: an nf_tables table that is not its `owner`'s and has one of
// these words in its name or comment.
struct Heir {
  std::uint32_t owner;  // a netlink port
  std::vector<std::string> words;
};

// In front of all that goes to the guard; the two of Orphan follow, and the words of Heir, each with a newline behind it. No
// question: no orphan. The owner is Orphan's, or Heir's: there is one or the other, or neither.
struct Preface {
  std::uint32_t descriptor, question, takeover, words, graceMs, owner;
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
  struct Options {
    const Orphan* orphan = nullptr;
    const Heir* heir = nullptr;
    std::string netns;  // where an heir is looked for; empty: this thread's
  };
  // When this process ends, in whatever way, these are sent, one after the other, through one or two sockets, of which the
  // guard has copies. It has CAP_NET_ADMIN where this process has it. Throws socket::Error.
  // An orphan that is taken over by somebody else spares all of them, and so does an heir.
  Process(std::span<const Datagram> datagrams, const Options& options);
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
