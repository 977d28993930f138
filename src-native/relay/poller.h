// Where readiness comes from. The relay works on latches that readiness sets and EAGAIN clears. Before each wait the
// poller hears what every socket that had its turn waits for now. epoll, edge-triggered, tells every change anyway; a ring
// arms for exactly that, and can receive by itself: then bytes come in the place of "readable".
#pragma once
#include <cstdint>
#include <optional>
#include <span>

#include "relay/ring.h"
#include "unique_fd.h"

namespace tproxy::relay {

// How one socket is watched; belongs to the socket's owner.
struct Watch {
  std::uint64_t token = 0;  // never used twice, so what is told late about a socket that is gone harms nobody
  // The poller reads: whoever else did would take later bytes before earlier ones.
  bool receiving() const { return (armed & receive) != 0; }

  // The rest is between the poller and what it tells.
  static constexpr std::uint8_t receive = 1;
  std::uint8_t armed = 0;
  bool stopping = false;
  bool hungUp = false;
};

// What a socket waits for. Errors, and that the peer has ended, are told in any case.
struct Wanted {
  enum class Input {
    nothing,
    edges,    // each arrival, taking none of it
    poll,     // something to read, from a state in which there is nothing
    receive,  // the poller may read
  };
  Input input = Input::nothing;
  bool output = false;
  bool ended = false;  // what the poller has told already
};

// What send() could not send, and why.
struct Unsent {
  Received bytes;
  int error;  // a positive errno; EAGAIN: there was no room
};

struct Ready {
  std::uint64_t token = 0;
  bool readable = false;
  bool writable = false;
  bool ended = false;   // the peer will send no more (FIN), or the connection is gone altogether
  bool failed = false;  // an error, or both ways closed
  bool urgent = false;  // an urgent byte is waiting
  // From a poller that receives: the next bytes; that none follow (end of stream); or the error in their place.
  std::optional<Received> received;
  bool atEnd = false;
  int error = 0;
  std::optional<Unsent> unsent;
  std::optional<int> taken;    // what became of splice() from the socket: a number of bytes, or a negative errno
  std::optional<int> spliced;  // and to it
  std::uint8_t disarmed = 0;   // of Watch::armed
};

struct Waiting {
  int timeoutMs;  // -1 = without end
  // Nothing but bulk has gone lately: what comes next is better late and much than soon and little.
  bool bulk = false;
};

class Poller {
 public:
  virtual ~Poller() = default;
  // A descriptor that wakes wait() with each write to it; it has the token 0.
  virtual void addWake(int fd) = 0;
  // Tells the present state first, unless it only tells what is wanted.
  virtual void add(int fd, Watch& watch) = 0;
  // Called for the last time before a wait, so that nothing is closed between this and the kernel's hearing of it.
  virtual void want(int fd, Watch& watch, const Wanted& wanted) = 0;
  // Before a descriptor goes to somebody else.
  virtual void remove(int fd, Watch& watch) = 0;
  // Sends without blocking, after what was asked of it before. Nothing is told of what has left; what has not is told as
  // `unsent` by the next wait. False: it does not send, and the bytes are still the caller's.
  virtual bool send(int, const Watch&, Received&) { return false; }
  // Splices by itself between a pipe and the socket (to it, or from it), and tells `spliced`. Both descriptors must stay
  // open until then. False: it does not splice.
  virtual bool splice(int, int, std::size_t, Watch&, bool) { return false; }
  // Nothing is being spliced any more; what came of it is told at the next wait.
  virtual void finishSplicing() {}
  // Closes a descriptor, if there still is one, after all that was asked of it before.
  virtual void close(UniqueFd fd, Watch& watch) = 0;
  // What was closed is, and nothing holds it open any more.
  virtual void finishClosing() {}
  // Blocks. What it gives is the caller's until the next call.
  virtual std::span<Ready> wait(Waiting waiting) = 0;
};

}  // namespace tproxy::relay
