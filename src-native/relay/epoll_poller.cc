#include "relay/epoll_poller.h"

#include <algorithm>

#include "socket/error.h"

namespace tproxy::relay {

EpollPoller::EpollPoller() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_) throw socket::Error(errno, "epoll_create1");
}

void EpollPoller::add(int fd, std::uint64_t token) {
  epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, .data = {.u64 = token}};
  int result = epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  // A registration lives as long as the socket: one of a former descriptor of this number may be left, if somebody else
  // still holds the socket.
  if (result < 0 && errno == EEXIST) result = epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
  if (result < 0) throw socket::Error(errno, "epoll_ctl");
}

void EpollPoller::remove(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

std::size_t EpollPoller::wait(std::span<Ready> ready, int timeoutMs) {
  const auto room = static_cast<int>(std::min(ready.size(), events_.size()));
  const int count = epoll_wait(epoll_.get(), events_.data(), room, timeoutMs);
  if (count < 0 && errno != EINTR) throw socket::Error(errno, "epoll_wait");
  for (int i = 0; i < count; ++i) {
    const std::uint32_t events = events_[static_cast<std::size_t>(i)].events;
    ready[static_cast<std::size_t>(i)] = {
        .token = events_[static_cast<std::size_t>(i)].data.u64,
        .readable = (events & EPOLLIN) != 0,
        .writable = (events & EPOLLOUT) != 0,
        .ended = (events & EPOLLRDHUP) != 0,
        .failed = (events & (EPOLLERR | EPOLLHUP)) != 0,
        .urgent = (events & EPOLLPRI) != 0,
    };
  }
  return static_cast<std::size_t>(std::max(count, 0));
}

}  // namespace tproxy::relay
