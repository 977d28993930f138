// Where readiness comes from. The relay works on latches that readiness sets and EAGAIN clears, so a source must tell
// every change at least once (edges), may tell too much, and need not be asked again. epoll does so with EPOLLET,
// io_uring with multishot polls. A source of one-shot polls can read what to arm from the latches that are down.
#pragma once
#include <cstdint>
#include <span>

namespace tproxy::relay {

struct Ready {
  std::uint64_t token;
  bool readable;
  bool writable;
  bool ended;   // the peer will send no more (FIN), or the connection is gone altogether
  bool failed;  // an error, or both ways closed
  bool urgent;  // an urgent byte is waiting
};

class Poller {
 public:
  virtual ~Poller() = default;
  // Tells the present state first. Tokens are never used twice, so what is told late about a token that is gone harms
  // nobody.
  virtual void add(int fd, std::uint64_t token) = 0;
  // Before a descriptor goes to somebody else. Closing needs no word to the poller.
  virtual void remove(int fd) = 0;
  // Blocks for at most so many milliseconds, -1 = without end, and gives how many of `ready` it filled.
  virtual std::size_t wait(std::span<Ready> ready, int timeoutMs) = 0;
};

}  // namespace tproxy::relay
