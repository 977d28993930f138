#include "relay/thread.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <cstdint>
#include <exception>
#include <future>
#include <iterator>
#include <memory>
#include <optional>

#include "relay/epoll_poller.h"
#include "relay/loop.h"
#include "relay/uring_poller.h"
#include "signals_blocked.h"
#include "socket/error.h"
#include "socket/netns.h"

namespace tproxy::relay {

namespace {

void wakeUp(const UniqueFd& wake) { eventfd_write(wake.get(), 1); }

}  // namespace

Thread::Thread(std::string netns, bool uring, std::function<void()> notify)
    : netns_(std::move(netns)), uring_(uring), notify_(std::move(notify)) {}

bool Thread::hasUring() {
  try {
    const UringPoller poller;
    return true;
  } catch (const socket::Error& refusal) {
    // Seccomp, sysctl kernel.io_uring_disabled, a kernel without it, or one before 6.1; no memory that may be locked.
    const int error = refusal.errnum();
    if (error == EPERM || error == EACCES || error == ENOSYS || error == EINVAL || error == ENOMEM) return false;
    throw;
  }
}

bool Thread::hasSplice() {
  // Who may use it is told that these are no descriptors.
  return splice(-1, nullptr, -1, nullptr, 1, 0) < 0 && errno == EBADF;
}

void Thread::post(Command command) {
  const std::lock_guard lock(mutex_);
  commands_.push_back(std::move(command));
  if (commands_.size() == 1) wakeUp(wake_);
}

std::vector<Event> Thread::takeEvents() {
  const std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

void Thread::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wakeUp(wake_);
  thread_.join();
  wake_.reset();
  commands_.clear();
  events_.clear();
}

void Thread::start() {
  if (thread_.joinable()) return;
  wake_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) throw socket::Error(errno, "eventfd");
  stopping_ = false;
  std::promise<void> started;
  std::future<void> result = started.get_future();
  try {
    const SignalsBlocked blocked;  // splice to a dead socket raises SIGPIPE, too
    thread_ = std::thread(&Thread::main, this, std::move(started));
  } catch (const std::system_error& failure) {
    wake_.reset();
    throw socket::Error(failure.code().value(), "pthread_create");
  }
  try {
    result.get();
  } catch (...) {
    thread_.join();
    wake_.reset();
    throw;
  }
}

void Thread::main(std::promise<void> started) {
  pthread_setname_np(pthread_self(), "tproxy-relay");
  std::unique_ptr<Poller> poller;
  std::optional<Loop> loop;
  try {
    if (!netns_.empty()) enterNetns(netns_);
    if (uring_)
      poller = std::make_unique<UringPoller>();
    else
      poller = std::make_unique<EpollPoller>();
    poller->addWake(wake_.get());
    loop.emplace(*poller, ids_);
  } catch (...) {
    return started.set_exception(std::current_exception());
  }
  started.set_value();

  std::vector<Command> commands;
  for (;;) {
    loop->wait();
    commands.clear();
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      std::swap(commands, commands_);
    }
    for (Command& command : commands) loop->handle(command);
    loop->run();
    std::vector<Event> events = loop->takeEvents();
    if (events.empty()) continue;
    bool first;
    {
      const std::lock_guard lock(mutex_);
      first = events_.empty();
      std::move(events.begin(), events.end(), std::back_inserter(events_));
    }
    if (first) notify_();
  }
}

}  // namespace tproxy::relay
