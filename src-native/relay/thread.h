// The relay thread: starting it (in a network namespace, if asked), handing it commands, taking its events, ending it.
#pragma once
#include <atomic>
#include <functional>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "relay/messages.h"
#include "unique_fd.h"

namespace tproxy::relay {

class Thread {
 public:
  // `notify` is called on the relay thread when events have come and nobody has taken them yet.
  // `uring`: the poller is an io_uring.
  Thread(std::string netns, bool uring, std::function<void()> notify);
  ~Thread() { stop(); }

  // Whether this process may have an io_uring of the kind we need. Throws when it may, but cannot now.
  static bool hasUring();
  // Whether it may use splice(2).
  static bool hasSplice();

  Id nextId() { return ids_.fetch_add(1, std::memory_order_relaxed); }
  // Unless it runs already. Throws socket::Error when it cannot be started.
  void start();
  void post(Command command);
  std::vector<Event> takeEvents();
  // Ends everything that is open with RST, and the thread with it. No event comes after that.
  void stop();

 private:
  void main(std::promise<void> started);

  const std::string netns_;
  const bool uring_;
  const std::function<void()> notify_;
  std::atomic<Id> ids_{1};
  std::thread thread_;
  UniqueFd wake_;
  std::mutex mutex_;  // guards what follows
  bool stopping_ = false;
  std::vector<Command> commands_;
  std::vector<Event> events_;
};

}  // namespace tproxy::relay
