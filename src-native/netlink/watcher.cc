#include "netlink/watcher.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <iterator>

#include "netlink/connection.h"
#include "netlink/error.h"
#include "signals_blocked.h"
#include "socket/netns.h"

namespace tproxy::netlink {

namespace {

// As much as waits for JavaScript at most; what comes on top is lost, as in the kernel's own queue.
constexpr size_t mostBytes = 4 << 20;
// The kernel puts at most a page's worth into one notification, or one message that is larger.
constexpr size_t datagramSize = 64 << 10;
// Read from one socket before others, and JavaScript, have their turn: somebody may send faster than we read.
constexpr int datagramsPerTurn = 256;
constexpr timespec idleTime{.tv_sec = 0, .tv_nsec = 500'000'000};  // without a watch
// What epoll_wait(2) tells of the two descriptors that are no watches: no Id is as large.
constexpr uint64_t woken = UINT64_MAX, timedOut = UINT64_MAX - 1;

[[noreturn]] void fail(const char* request) { throw Error("watch", {.errnum = errno, .request = request}); }

std::string processNameOf(uint32_t portId) {
  std::string name;
  const uint32_t processId = portId % (1U << processIdBits);
  if (processId != 0 && portId >> processIdBits < portsOfProcess) {
    std::ifstream comm("/proc/" + std::to_string(processId) + "/comm");
    std::getline(comm, name);
  }
  return name;
}

}  // namespace

Watcher::Id Watcher::watch(int protocol, const std::string& netns, const std::vector<int>& groups, Wanted wanted) {
  Watch added{.wanted = std::move(wanted)};
  inNetns(netns, [&] {
    added.fd.reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol));
    if (!added.fd) fail("socket");
  });
  sockaddr_nl self{.nl_family = AF_NETLINK};
  for (const int group : groups) self.nl_groups |= 1U << (group - 1);
  if (::bind(added.fd.get(), reinterpret_cast<const sockaddr*>(&self), sizeof self) != 0) fail("bind");
  return add(std::move(added));
}

Watcher::Id Watcher::watch(UniqueFd descriptor) { return add({.fd = std::move(descriptor)}); }

Watcher::Id Watcher::add(Watch watch) {
  const Id id = ++last_;
  const int fd = watch.fd.get();
  // What is no socket tells once.
  epoll_event event{.events = EPOLLIN | (watch.wanted ? 0U : EPOLLONESHOT), .data = {.u64 = id}};
  {
    const std::lock_guard lock(mutex_);
    watches_.emplace(id, std::make_shared<Watch>(std::move(watch)));
  }
  try {
    start();
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
  } catch (...) {
    unwatch(id);
    throw;
  }
  return id;
}

void Watcher::unwatch(Id id) {
  std::shared_ptr<Watch> ended;  // closed without the lock
  const std::lock_guard lock(mutex_);
  const auto found = watches_.find(id);
  if (found == watches_.end()) return;
  ended = std::move(found->second);
  watches_.erase(found);
  lost_.erase(id);
  if (!epoll_) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, ended->fd.get(), nullptr);
  const itimerspec idle{.it_interval = {}, .it_value = idleTime};
  if (watches_.empty()) ::timerfd_settime(timer_.get(), 0, &idle, nullptr);
}

Watcher::Taken Watcher::take(size_t most) {
  const std::lock_guard lock(mutex_);
  const auto end = notifications_.begin() + static_cast<std::ptrdiff_t>(std::min(most, notifications_.size()));
  std::vector<Notification> taken(std::move_iterator(notifications_.begin()), std::move_iterator(end));
  notifications_.erase(notifications_.begin(), end);
  for (const Notification& notification : taken) {
    bytes_ -= notification.message.size();
    if (notification.message.empty()) lost_.erase(notification.id);
  }
  return {std::move(taken), !notifications_.empty()};
}

void Watcher::open() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) fail("epoll_create");
  const auto add = [&](int fd, uint64_t data) {
    epoll_event event{.events = EPOLLIN, .data = {.u64 = data}};
    if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
  };
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) fail("eventfd");
  add(wake_.get(), woken);
  timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer_) fail("timerfd_create");
  add(timer_.get(), timedOut);
  epoll_ = std::move(epoll);
}

void Watcher::start() {
  if (!epoll_) open();
  if (thread_.joinable()) {
    const std::lock_guard lock(mutex_);
    if (!ended_) return;
  }
  if (thread_.joinable()) thread_.join();
  ended_ = false;
  const SignalsBlocked blocked;
  thread_ = std::thread(&Watcher::main, this);
}

void Watcher::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    watches_.clear();
  }
  eventfd_write(wake_.get(), 1);
  thread_.join();
}

void Watcher::main() {
  pthread_setname_np(pthread_self(), "tproxy-watch");
  std::array<epoll_event, 16> events;
  for (;;) {
    const int ready = ::epoll_wait(epoll_.get(), events.data(), events.size(), -1);
    for (int i = 0; i < ready; ++i) {
      const uint64_t id = events[static_cast<size_t>(i)].data.u64;
      std::shared_ptr<Watch> watch;  // so that one that ends meanwhile is not closed while it is read
      {
        const std::lock_guard lock(mutex_);
        if (id == woken) return;
        if (id == timedOut) {
          uint64_t times;
          if (::read(timer_.get(), &times, sizeof times) > 0 && watches_.empty()) {
            ended_ = true;
            return;
          }
          continue;
        }
        const auto found = watches_.find(static_cast<Id>(id));
        if (found == watches_.end()) continue;
        watch = found->second;
      }
      read(static_cast<Id>(id), *watch);
    }
  }
}

void Watcher::read(Id id, const Watch& watch) {
  std::vector<Notification> notifications;
  if (!watch.wanted) return deliver({{.id = id}});
  Bytes datagram(datagramSize);
  uint32_t by = 0;  // who sends one message sends many: looked up once
  std::string byName;
  for (int turn = 0; turn < datagramsPerTurn; ++turn) {
    sockaddr_nl sender{};
    iovec buffer{.iov_base = datagram.data(), .iov_len = datagram.size()};
    msghdr header{.msg_name = &sender, .msg_namelen = sizeof sender, .msg_iov = &buffer, .msg_iovlen = 1};
    const ssize_t size = ::recvmsg(watch.fd.get(), &header, 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && errno == EAGAIN) break;
    if (size >= 0 && sender.nl_pid != 0) continue;  // only the kernel is believed
    if (size < 0 || (header.msg_flags & MSG_TRUNC)) {
      notifications.push_back({.id = id});  // ENOBUFS: the queue was full
      if (size < 0 && errno != ENOBUFS) break;
      continue;
    }
    try {
      for (ByteView rest = ByteView(datagram).first(static_cast<size_t>(size)); !rest.empty();) {
        const Received message = readMessage(rest);
        if (!watch.wanted(message)) continue;
        if (std::exchange(by, message.header.nlmsg_pid) != by) byName = processNameOf(by);
        notifications.push_back(
            {.id = id, .message = Bytes(message.whole.begin(), message.whole.end()), .processName = byName});
      }
    } catch (const Malformed&) {
      notifications.push_back({.id = id});
    }
  }
  if (!notifications.empty()) deliver(std::move(notifications));
}

void Watcher::deliver(std::vector<Notification> notifications) {
  bool first;
  {
    const std::lock_guard lock(mutex_);
    first = notifications_.empty();
    for (Notification& notification : notifications) {
      if (bytes_ > mostBytes) notification.message.clear();
      bytes_ += notification.message.size();
      if (!notification.message.empty())
        lost_.erase(notification.id);
      else if (!lost_.insert(notification.id).second)
        continue;
      notifications_.push_back(std::move(notification));
    }
  }
  if (first) notify_();
}

}  // namespace tproxy::netlink
