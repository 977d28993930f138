// The bytes that are on their way from one socket to the other, and the system calls that move them: recv and send while
// messages are short, for which a pipe costs more than the copy, and splice(2) through a borrowed pipe once they fill what
// they are read into. Knows nothing of readiness, of timers, or of what an end of stream means.
#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "relay/pipe_pool.h"
#include "relay/ring.h"

namespace tproxy::relay {

class Poller;
struct Watch;

// How bulk is moved: by splice(2) here and now, by the poller's workers where it has any, or by recv and send.
enum class Engine { splice, ringSplice, copy };

// What is under way in one direction. A direction borrows it while it has any, so that an idle one costs no memory.
struct Cargo {
  std::optional<Pipe> pipe;
  std::size_t inPipe = 0;
  std::span<const std::byte> inBuffer;  // part of the shared buffer
  std::vector<std::byte> held;          // a preface, or what a short write left over
  std::size_t heldFrom = 0;
  std::vector<Received> received;
  std::size_t receivedFrom = 0;
  // By the poller, until it tells what came of it: into the pipe, or, when there is something in it, out of it.
  bool splicing = false;

  // So many of the received bytes, which are then gone.
  void forgetReceived(std::size_t bytes);
  bool empty() const {
    return inPipe == 0 && inBuffer.empty() && heldFrom == held.size() && receivedFrom == received.size();
  }
};

// What all movers of a thread share.
struct Workspace {
  Poller& poller;
  PipePool pipes = {};
  std::vector<std::byte> buffer = std::vector<std::byte>(128 * 1024);
  std::vector<std::unique_ptr<Cargo>> cargos;  // empty ones
  // Turns of the loop, and the last one in which short messages went.
  std::uint64_t turn = 0;
  std::uint64_t shortAt = 0;

  void takeBack(std::unique_ptr<Cargo> cargo) {
    constexpr std::size_t keptIdle = 256;
    if (cargos.size() < keptIdle) cargos.push_back(std::move(cargo));
  }

  bool onlyBulk() const {
    constexpr std::uint64_t lately = 64;
    return shortAt + lately <= turn;
  }
  // A direction may move so much before others have their turn, and one splice too: less while short messages go as well.
  std::size_t bytesPerTurn() const {
    constexpr std::size_t alone = std::size_t{1024} * 1024;
    return onlyBulk() ? alone : alone / 2;
  }
};

struct Moved {
  std::size_t bytes = 0;
  int error = 0;         // a positive errno
  bool spliced = false;  // else copied
  bool drained = false;  // of a take: the source had no more at that moment
  bool end() const { return bytes == 0 && error == 0; }
};

class Mover {
 public:
  Mover(Engine engine, std::vector<std::byte> preface);

  bool empty() const { return !cargo_; }
  // Reads come in such numbers and sizes that it wants to do them itself.
  bool streaming() const { return streaming_; }
  // Bytes are waiting in a pipe.
  bool holdsPipe() const { return cargo_ && cargo_->pipe.has_value(); }
  // Bytes that the poller has read; only while nothing was taken that is not given yet.
  void receive(Received received, Workspace& workspace);
  // One read from `from`; only when empty(), and give() must follow at once when it brought bytes: copied ones are in
  // the shared buffer until then.
  Moved take(int from, Workspace& workspace);
  // The same without splice, which stops for good before an urgent byte.
  Moved takeCopying(int from, Workspace& workspace);
  // One write to `to`; only when not empty(). With `last`, an end of stream follows at once, so that both can leave in
  // one packet.
  Moved give(int to, bool last, Workspace& workspace);
  // Leaves a lone message to the poller, if it sends, and says how long it is; 0: it is still here.
  std::size_t sendByPoller(int to, const Watch& watch, Workspace& workspace);
  // What came back of it.
  void unsent(Received bytes, Workspace& workspace);
  // Leaves a read to the poller, if it splices; only when empty().
  bool takeByPoller(int from, Watch& watch, Workspace& workspace);
  Moved taken(int result, Workspace& workspace);
  // The same with a write.
  bool giveByPoller(int to, Watch& watch, Workspace& workspace);
  Moved spliced(int result, Workspace& workspace);
  // Waits for the poller to tell.
  bool busy() const { return cargo_ && cargo_->splicing; }
  // The receiver is slower than the sender: read only as it takes it.
  void slowDown() { stream(true); }
  // Frees the poller's buffers, and the shared one, of what could not be given.
  void keep();
  // Forgets the bytes.
  void drop(Workspace& workspace);

 private:
  Cargo& cargo(Workspace& workspace);
  Moved takeSplicing(int from, Workspace& workspace);
  void noteRead(std::size_t bytes, std::size_t room);
  void stream(bool streaming);
  Moved giveSpliced(int to, Workspace& workspace);
  Moved noteSpliced(Moved result, Workspace& workspace);
  Moved giveReceived(int to, bool last, Workspace& workspace);
  Moved giveCopied(int to);
  bool emptyPipeIntoHeld(Workspace& workspace);

  Engine engine_;
  bool streaming_ = false;
  std::uint8_t inARow_ = 0;       // full reads, or, while streaming, short ones
  std::unique_ptr<Cargo> cargo_;  // only with something in it, but for within a call
};

}  // namespace tproxy::relay
