// The bytes that are on their way from one socket to the other, and the system calls that move them: splice(2) through
// a borrowed pipe, or recv and send. Knows nothing of readiness, of timers, or of what an end of stream means.
#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "relay/pipe_pool.h"

namespace tproxy::relay {

enum class Engine { splice, copy };

// What all movers of a thread share.
struct Workspace {
  PipePool pipes;
  std::vector<std::byte> buffer = std::vector<std::byte>(128 * 1024);
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
  Mover(Engine engine, std::vector<std::byte> preface) : engine_(engine), held_(std::move(preface)) {}

  bool empty() const { return inPipe_ == 0 && inBuffer_.empty() && heldFrom_ == held_.size(); }
  // One read from `from`; only when empty(), and give() must follow at once when it brought bytes: copied ones are in
  // the shared buffer until then.
  Moved take(int from, Workspace& workspace);
  // The same without splice, which stops for good before an urgent byte.
  Moved takeCopying(int from, Workspace& workspace);
  // One write to `to`; only when not empty().
  Moved give(int to, Workspace& workspace);
  // Forgets the bytes.
  void drop(Workspace& workspace);

 private:
  Moved giveCopied(int to);
  bool emptyPipeIntoHeld(Workspace& workspace);

  Engine engine_;
  std::optional<Pipe> pipe_;
  std::size_t inPipe_ = 0;
  std::span<const std::byte> inBuffer_;  // part of the shared buffer
  std::vector<std::byte> held_;          // a preface, or what a short write left over
  std::size_t heldFrom_ = 0;
};

}  // namespace tproxy::relay
