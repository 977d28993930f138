// Readiness from epoll, edge-triggered: each socket is registered once and no system call is spent on it per byte.
#pragma once
#include <sys/epoll.h>

#include <array>
#include <vector>

#include "relay/poller.h"
#include "unique_fd.h"

namespace tproxy::relay {

class EpollPoller : public Poller {
 public:
  EpollPoller();
  void addWake(int fd) override;
  void add(int fd, Watch& watch) override;
  void want(int, Watch&, const Wanted&) override {}
  void remove(int fd, Watch& watch) override;
  void close(UniqueFd, Watch&) override {}  // which takes it out as well
  std::span<Ready> wait(Waiting waiting) override;

 private:
  UniqueFd epoll_;
  std::array<epoll_event, 256> events_;
  std::vector<Ready> ready_;
};

}  // namespace tproxy::relay
