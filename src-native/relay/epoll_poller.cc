#include "relay/epoll_poller.h"

#include <algorithm>

#include "socket/error.h"

namespace tproxy::relay {

EpollPoller::EpollPoller() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_) throw socket::Error(errno, "epoll_create1");
}

void EpollPoller::addWake(int fd) {
  Watch wake;  // edge-triggered: every write wakes, nobody needs to read
  add(fd, wake);
}

void EpollPoller::add(int fd, Watch& watch) {
  epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, .data = {.u64 = watch.token}};
  int result = epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  // A registration lives as long as the socket: one of a former descriptor of this number may be left, if somebody else
  // still holds the socket.
  if (result < 0 && errno == EEXIST) result = epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
  if (result < 0) throw socket::Error(errno, "epoll_ctl");
}

void EpollPoller::remove(int fd, Watch&) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

std::span<Ready> EpollPoller::wait(Waiting waiting) {
  ready_.clear();
  const int count = epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), waiting.timeoutMs);
  if (count < 0 && errno != EINTR) throw socket::Error(errno, "epoll_wait");
  for (const epoll_event& event : std::span(events_).first(static_cast<std::size_t>(std::max(count, 0)))) {
    Ready& ready = ready_.emplace_back();
    ready.token = event.data.u64;
    ready.readable = (event.events & EPOLLIN) != 0;
    ready.writable = (event.events & EPOLLOUT) != 0;
    ready.ended = (event.events & EPOLLRDHUP) != 0;
    ready.failed = (event.events & (EPOLLERR | EPOLLHUP)) != 0;
    ready.urgent = (event.events & EPOLLPRI) != 0;
  }
  return ready_;
}

}  // namespace tproxy::relay
