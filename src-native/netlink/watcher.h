// One thread that reads what netlink tells its multicast groups, for any number of watches. While nothing happens it
// sleeps in epoll_wait(2), and is not woken when watches come and go.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "netlink/message.h"
#include "unique_fd.h"

namespace tproxy::netlink {

class Watcher {
 public:
  using Id = uint32_t;
  // Whether a message is worth handing on. Called on the watcher's thread only, for one message after the other.
  using Wanted = std::function<bool(const Received& message)>;

  struct Notification {
    Id id = 0;
    Bytes message;            // empty: some were lost, so who wants to know has to look
    std::string processName;  // of the sender, where its port id is a process's id and the process still there
  };

  // `notify` is called on the watcher's thread when something has come and nobody has taken what came before.
  explicit Watcher(std::function<void()> notify) : notify_(std::move(notify)) {}
  ~Watcher() { stop(); }

  // Joins groups (RTNLGRP_..., NFNLGRP_..., up to 32) of NETLINK_ROUTE or NETLINK_NETFILTER in a namespace; an empty `netns` is
  // the calling thread's own. What happens after this call is told. Throws netlink::Error, socket::Error.
  Id watch(int protocol, const std::string& netns, const std::vector<int>& groups, Wanted wanted);
  // Tells, once and without a message, that a descriptor (a pidfd) has become readable.
  Id watch(UniqueFd descriptor);
  // The thread ends a while after the last one: to start another takes longer than one may think.
  void unwatch(Id id);
  struct Taken {
    std::vector<Notification> notifications;
    bool more;  // has come: `notify` will not tell of it
  };
  Taken take(size_t most);
  void stop();

 private:
  struct Watch {
    UniqueFd fd;    // stays the same
    Wanted wanted;  // none: not a socket
  };

  Id add(Watch watch);
  void open();
  void start();
  void main();
  void read(Id id, const Watch& watch);
  void deliver(std::vector<Notification> notifications);

  const std::function<void()> notify_;
  std::thread thread_;
  UniqueFd epoll_;
  UniqueFd wake_;   // an eventfd: to stop
  UniqueFd timer_;  // a timerfd: without a watch for a while
  Id last_ = 0;
  std::mutex mutex_;  // guards what follows
  bool ended_ = false;
  std::map<Id, std::shared_ptr<Watch>> watches_;
  std::deque<Notification> notifications_;
  size_t bytes_ = 0;   // in them
  std::set<Id> lost_;  // whose last one says that some were lost: another would say no more
};

}  // namespace tproxy::netlink
