// Readiness from epoll, edge-triggered: each socket is registered once and no system call is spent on it per byte.
#pragma once
#include <sys/epoll.h>

#include <array>

#include "relay/poller.h"
#include "unique_fd.h"

namespace tproxy::relay {

class EpollPoller : public Poller {
 public:
  EpollPoller();
  void add(int fd, std::uint64_t token) override;
  void remove(int fd) override;
  std::size_t wait(std::span<Ready> ready, int timeoutMs) override;

 private:
  UniqueFd epoll_;
  std::array<epoll_event, 256> events_;
};

}  // namespace tproxy::relay
