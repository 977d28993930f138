// One relayed connection: two sockets, two directions, half-close, resets, urgent data. It works on latches and system
// calls alone: who sets the latches (poller.h), and what becomes of its end (loop.h), is not decided here.
#pragma once
#include <cerrno>
#include <cstdint>
#include <vector>

#include "relay/counters.h"
#include "relay/mover.h"
#include "relay/poller.h"
#include "unique_fd.h"

namespace tproxy::relay {

// One of the two sockets.
struct Side {
  UniqueFd fd;
  Watch watch;
  // Latches: up by readiness, down by EAGAIN.
  bool readable = false;
  bool writable = false;
  bool urgent = false;
  bool suspect = false;  // there may be an error to take
  bool over = false;     // an end or an error is waiting behind the bytes: nothing more will be told, read on to it
  bool ended = false;    // FIN came, seen before any error: what was sent is complete
  bool atEnd = false;    // the poller has read to the end of stream: nothing is left but what the mover has
  bool connecting = false;
  bool noDelay = false;  // small messages leave at once, also those that follow another
  int error = 0;         // the connection to this side is gone

  void latch(const Ready& ready);
  // Whether an end of stream read here is one: after a reset reading ends as well. The kernel says EPIPE for RST after
  // FIN.
  bool complete() const { return error == 0 || ended || error == EPIPE; }
  // Takes the error that the kernel may have for it.
  void inspect();
};

class Connection {
 public:
  enum class State { blocked, runnable, ended };

  Side client;
  Side server;
  Counters counters;
  bool awaitsConnect = false;  // to know when the server is there, also while there is nothing to send to it

  // To be called once both sides are connected.
  void start(Engine engine, std::vector<std::byte> clientPreface, std::vector<std::byte> serverPreface);
  // What the poller has read from a side.
  void receive(const Side& from, Received received, Workspace& workspace) {
    directionFrom(from).mover.receive(std::move(received), workspace);
  }
  // What the poller could not send to a side.
  void unsent(Side& to, Unsent unsent, Workspace& workspace);
  // What it has spliced to a side: bytes, or a negative errno.
  void spliced(Side& to, int result, Workspace& workspace);
  // What it has taken of a side.
  void taken(Side& from, int result, Workspace& workspace);
  // Moves bytes until it blocks, or until its turn is over (`runnable`).
  State run(Workspace& workspace);
  // What it waits for then, of a side; the client's may be read before the server is there.
  Wanted wanted(const Side& side) const;
  // Lets go of the poller's buffers when what is in them cannot go on.
  void keep() {
    fromClient_.mover.keep();
    fromServer_.mover.keep();
  }

  // When the descriptors are closed, both sides hear RST, or what is left of them.
  void abort(Workspace& workspace);
  // Once run() said `ended`: 0, or the error that ended it.
  int error() const { return client.error ? client.error : server.error; }

  // One direction has ended and the other goes on.
  bool halfClosed() const { return fromClient_.done || fromServer_.done || error() != 0; }
  std::uint64_t bytesFromClient() const { return fromClient_.bytes; }
  std::uint64_t bytesFromServer() const { return fromServer_.bytes; }

 private:
  struct Direction {
    Mover mover{Engine::copy, {}};
    Counter counter;
    std::uint64_t bytes = 0;
    bool end = false;       // read to the end of stream
    bool done = false;      // and told the other side so
    bool presumed = false;  // the last that was left to the poller went to a side that was connecting
  };

  void countPipes();
  Direction& directionFrom(const Side& side) { return &side == &client ? fromClient_ : fromServer_; }
  // `back` is the other direction.
  State move(Side& from, Side& to, Direction& way, const Direction& back, Workspace& workspace);
  Direction& directionTo(const Side& side) { return &side == &client ? fromServer_ : fromClient_; }
  void noteTaken(Side& from, Direction& way, Moved taken, Workspace& workspace);
  bool giveToPoller(Side& to, Direction& way, Workspace& workspace);
  void noteGiven(Side& to, Direction& way, const Moved& given);
  void drop(Workspace& workspace);
  // After an error of `side`: whether nothing is left to do.
  bool settle(Side& side, Side& other, const Direction& fromSide, Workspace& workspace);

  Direction fromClient_{.counter = Counter::bytesFromClient};
  Direction fromServer_{.counter = Counter::bytesFromServer};
  unsigned pipes_ = 0;  // as counted
};

// Closes so that the peer gets all that was sent and then FIN. (Input that nobody read would make it RST.)
void closeGently(UniqueFd& fd);

}  // namespace tproxy::relay
