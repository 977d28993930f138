// Pipes for splice(2). A direction borrows one only while bytes are in it, so the pipes in use are as many as there are
// directions whose receiver is slow, and an idle connection has none.
#pragma once
#include <cstddef>
#include <optional>
#include <vector>

#include "unique_fd.h"

namespace tproxy::relay {

struct Pipe {
  UniqueFd out;  // the end to read from
  UniqueFd in;
  std::size_t capacity;
};

class PipePool {
 public:
  PipePool();
  // Nothing when all pipes that this thread allows itself are in use, or descriptors have run out: copy for now.
  std::optional<Pipe> borrow();
  // The pipe must be empty.
  void giveBack(Pipe pipe);
  // With bytes in it: nobody may ever read those, so the pipe is closed.
  void discard(Pipe pipe);

 private:
  std::vector<Pipe> idle_;
  std::size_t open_ = 0;
  std::size_t limit_;
};

}  // namespace tproxy::relay
