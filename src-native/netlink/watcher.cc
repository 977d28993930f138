#include "netlink/watcher.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <iterator>

#include "netlink/connection.h"
#include "netlink/error.h"
#include "socket/netns.h"

namespace tproxy::netlink {

namespace {

// As much as waits for JavaScript at most; what comes on top is lost, as in the kernel's own queue.
constexpr size_t mostBytes = 4 << 20;
// The kernel puts at most a page's worth into one notification, or one message that is larger.
constexpr size_t datagramSize = 64 << 10;
// Read from one socket before others, and JavaScript, have their turn: somebody may send faster than we read.
constexpr int datagramsPerTurn = 256;
constexpr int idleMs = 500;  // without a watch

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
  Id id;
  {
    const std::lock_guard lock(mutex_);
    id = ++last_;
    watches_.emplace(id, std::make_shared<Watch>(std::move(watch)));
  }
  try {
    start();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    watches_.erase(id);
    throw;
  }
  eventfd_write(wake_.get(), 1);
  return id;
}

void Watcher::unwatch(Id id) {
  {
    const std::lock_guard lock(mutex_);
    watches_.erase(id);
    lost_.erase(id);
  }
  eventfd_write(wake_.get(), 1);
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

void Watcher::start() {
  if (thread_.joinable()) {
    const std::lock_guard lock(mutex_);
    if (!ended_) return;
  }
  if (thread_.joinable()) thread_.join();
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) fail("eventfd");
  stopping_ = ended_ = false;
  // A thread inherits the signal mask: signals are for the threads of Node.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread(&Watcher::main, this);
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Watcher::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    watches_.clear();
  }
  eventfd_write(wake_.get(), 1);
  thread_.join();
}

void Watcher::main() {
  pthread_setname_np(pthread_self(), "tproxy-watch");
  for (;;) {
    // A copy, so that a watch that ends meanwhile is not closed under poll(2).
    std::map<Id, std::shared_ptr<Watch>> watches;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      watches = watches_;
    }
    std::vector<pollfd> descriptors{{.fd = wake_.get(), .events = POLLIN, .revents = 0}};
    for (const auto& [id, watch] : watches)
      descriptors.push_back({.fd = watch->fd.get(), .events = POLLIN, .revents = 0});
    const int ready = ::poll(descriptors.data(), descriptors.size(), watches.empty() ? idleMs : -1);
    if (ready < 0) continue;
    if (ready == 0) {
      const std::lock_guard lock(mutex_);
      if (!watches_.empty()) continue;
      ended_ = true;
      return;
    }
    eventfd_t value;
    if (descriptors.front().revents) eventfd_read(wake_.get(), &value);
    auto descriptor = descriptors.begin();
    for (const auto& [id, watch] : watches)
      if ((++descriptor)->revents) read(id, *watch);
  }
}

void Watcher::read(Id id, Watch& watch) {
  std::vector<Notification> notifications;
  if (!watch.wanted) {
    watch.fd.reset();  // poll(2) passes over it from now on
    deliver({{.id = id}});
    return;
  }
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
