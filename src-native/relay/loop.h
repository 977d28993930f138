// What happens on a relay thread: which connections there are, in which phase of their life, and what moves them on.
// Waiting for the world is the poller's part, moving bytes the connection's, being a thread that of thread.h. Nothing here
// blocks, and nothing is done for each byte.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "relay/connection.h"
#include "relay/messages.h"
#include "relay/poller.h"
#include "relay/timers.h"
#include "socket/address.h"
#include "socket/transparent.h"

namespace tproxy::relay {

class Loop {
 public:
  Loop(Poller& poller, std::atomic<Id>& ids);
  ~Loop();  // what is still open ends with RST

  // One turn is: wait, handle what was asked, run. Then the events are there to be taken.
  void wait();
  void handle(Command& command);
  void run();
  std::vector<Event> takeEvents() { return std::exchange(events_, {}); }

 private:
  struct Listener {
    AcceptCommand options;
    Watch watch;
    bool acceptable = false;
    socket::Address address;
    std::uint64_t open = 0;  // connections of it that have not ended
    bool failing = false;    // told already that accept fails
    // Of all upstream connections, where they are the same.
    std::optional<socket::Address> to;
    std::optional<socket::Address> from;
    Timers::Handle timer;  // to accept again, or, when it does not listen any more, to end what is open
  };
  // What is of no use any more once it relays.
  struct Setup {
    socket::Address source;
    socket::Address originalDestination;
    socket::Address upstream;
    Engine engine = Engine::splice;
    std::optional<PeekCommand> peek;
    // A connect that is under way, or done, before the decision.
    std::optional<socket::ConnectOptions> preconnected;
    std::optional<bool> localPortKept;
    int proxyProtocol = 0;
  };
  // A connection in one of its phases, or a lone connect (which has no client).
  struct Task {
    enum class Phase { undecided, connecting, relaying };
    Id id;
    Id server = 0;
    Phase phase;
    bool silent = false;  // JavaScript does not know of it
    bool queued = false;
    bool touched = false;
    Connection connection;
    std::unique_ptr<Setup> setup;
    Limits limits;
    std::int64_t lastActive = 0;
    Timers::Handle timer;
  };

  // A token is an id and what of it became ready. A connect that came before the decision, and may not be of use, has a
  // token of its own.
  enum class Part : std::uint64_t { client, server, listener, preconnected };
  static std::uint64_t tokenOf(Id id, Part part) { return id << 2 | static_cast<std::uint64_t>(part); }

  // ---- loop.cc: turns of the loop, relays, and how everything ends
  void hear(Ready& ready);
  void tellPoller();
  void touch(Task& task);
  void queue(Task& task);
  void run(Task& task);
  void expire(Id id);
  Task& add(Id id, Task::Phase phase);
  template <typename Step>
  void guarded(Id id, Step step);

  void on(RelayCommand& command);
  static void setLimits(int fd, const Limits& limits);
  static void prepare(int fd, const Limits& limits);
  void startRelay(Task& task);
  void armIdle(Task& task);

  void on(DestroyCommand& command);
  // Each of these ends the task: it is gone when they return.
  void end(Task& task, Reason reason, const std::optional<socket::Error>& failure = {});
  void fail(Task& task, const socket::Error& failure);
  void handOut(Task& task, UniqueFd& fd);
  void forget(Task& task);
  void close(Connection& connection);

  // ---- loop_accept.cc: listeners, and the connections that come in by them
  void on(AcceptCommand& command);
  void on(TellCommand& command);
  void on(StopAcceptingCommand& command);
  void queue(Listener& listener);
  void run(Listener& listener);
  void endAll(Id server);
  void closeIfDone(Listener& listener);
  static UniqueFd openReserve();
  bool acceptOne(Listener& listener);
  void adopt(Listener& listener, UniqueFd fd, const socket::Address& source);
  static Endpoint describe(const socket::Address& address, int fd);
  socket::ConnectOptions upstreamOf(const Listener& listener, const Task& task) const;
  void backOff(Listener& listener, int error);

  // ---- loop_connect.cc: from there to the relay: what is decided, and the connection to the server
  void on(PeekCommand& command);
  void answerPeek(Task& task, bool now);
  static bool serverSpoke(const Task& task);
  void on(DecideCommand& command);
  void on(ConnectCommand& command);
  void on(OpenerCommand& command);
  void preconnect(Task& task, const socket::ConnectOptions& options);
  void connect(Task& task, const socket::ConnectOptions& options, const Upstream& upstream);
  void dial(Task& task, socket::ConnectOptions options);
  bool isOwnListener(const Task& task, const socket::Address& destination) const;
  bool awaitsServer(const Task& task) const;
  void finishConnect(Task& task);
  void tellOpened(Task& task);
  socket::Error connectError(const Task& task, int error) const;

  Poller& poller_;
  std::atomic<Id>& ids_;
  Workspace workspace_;
  Timers timers_;
  std::int64_t now_ = 0;
  std::unordered_map<Id, Task> tasks_;
  std::unordered_map<Id, Listener> listeners_;
  std::vector<Id> queue_;
  std::vector<Id> running_;
  std::vector<Id> touched_;  // had their turn, or their first step, since the poller was told
  std::vector<Event> events_;
  // Nothing is accepted without a descriptor in reserve for the upstream socket.
  UniqueFd reserve_;
  socket::Opener opener_;
};

// Runs one step in the life of a task; a system call that fails there ends that task and nothing else.
template <typename Step>
void Loop::guarded(Id id, Step step) {
  try {
    step();
  } catch (const socket::Error& failure) {
    if (const auto task = tasks_.find(id); task != tasks_.end()) fail(task->second, failure);
  }
}

}  // namespace tproxy::relay
