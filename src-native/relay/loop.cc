#include "relay/loop.h"

#include <algorithm>
#include <chrono>

#include "socket/transparent.h"

namespace tproxy::relay {

namespace {

std::int64_t monotonicMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Of the errors that end a connection, those that only say that the peer broke it off.
bool isReset(int error) { return error == ECONNRESET || error == EPIPE; }

}  // namespace

Loop::Loop(Poller& poller, std::atomic<Id>& ids)
    : poller_(poller), ids_(ids), workspace_{.poller = poller}, reserve_(openReserve()) {}

Loop::~Loop() {
  for (auto& [id, task] : tasks_) {
    task.connection.abort(workspace_);
    close(task.connection);
  }
}

Loop::Task& Loop::add(Id id, Task::Phase phase) {
  Task& task = tasks_.try_emplace(id, Task{.id = id, .phase = phase}).first->second;
  touch(task);
  return task;
}

// ---- turns ----------------------------------------------------------------------------------------------------------

void Loop::wait() {
  tellPoller();
  std::int64_t timeout = -1;
  if (!queue_.empty())
    timeout = 0;
  else if (const auto next = timers_.next())
    timeout = std::clamp<std::int64_t>(*next - monotonicMs(), 0, 1'000'000);

  const auto events = poller_.wait({.timeoutMs = static_cast<int>(timeout), .bulk = workspace_.onlyBulk()});
  now_ = monotonicMs();
  ++workspace_.turn;
  for (Ready& ready : events) hear(ready);
}

void Loop::hear(Ready& ready) {
  const Id id = ready.token >> 2;
  const auto part = static_cast<Part>(ready.token & 3);
  if (part == Part::listener) {
    const auto found = listeners_.find(id);
    if (found == listeners_.end()) return;
    found->second.watch.armed &= static_cast<std::uint8_t>(~ready.disarmed);
    found->second.acceptable = true;
    return queue(found->second);
  }
  const auto found = tasks_.find(id);
  if (found == tasks_.end()) return;
  Connection& connection = found->second.connection;
  Side& side = part == Part::client ? connection.client : connection.server;
  if (side.watch.token != ready.token) return;
  if (ready.received && !ready.received->bytes().empty())
    connection.receive(side, std::move(*ready.received), workspace_);
  if (ready.unsent) connection.unsent(side, std::move(*ready.unsent), workspace_);
  if (ready.spliced) found->second.lastActive = now_;
  if (ready.spliced) connection.spliced(side, *ready.spliced, workspace_);
  if (ready.taken) connection.taken(side, *ready.taken, workspace_);
  side.latch(ready);
  queue(found->second);
}

// What everything that had its turn waits for now.
void Loop::tellPoller() {
  for (const Id id : touched_) {
    if (const auto listener = listeners_.find(id); listener != listeners_.end()) {
      Listener& one = listener->second;
      if (one.options.fd && !one.timer && !one.acceptable)
        poller_.want(one.options.fd.get(), one.watch, {.input = Wanted::Input::poll});
      continue;
    }
    const auto found = tasks_.find(id);
    if (found == tasks_.end()) continue;
    Task& task = found->second;
    task.touched = false;
    const Connection& connection = task.connection;
    for (Side* side : {&task.connection.client, &task.connection.server}) {
      if (side->watch.token == 0) continue;
      switch (task.phase) {
        case Task::Phase::undecided:
          if (side == &connection.server && !side->writable)
            poller_.want(side->fd.get(), side->watch, {.output = true});
          else
            poller_.want(side->fd.get(), side->watch, {.input = Wanted::Input::edges});
          break;
        case Task::Phase::connecting:
          if (side == &connection.server) {
            poller_.want(side->fd.get(), side->watch, {.output = true});
            break;
          }
          [[fallthrough]];
        case Task::Phase::relaying:
          poller_.want(side->fd.get(), side->watch, connection.wanted(*side));
      }
    }
  }
  touched_.clear();
}

void Loop::touch(Task& task) {
  if (!std::exchange(task.touched, true)) touched_.push_back(task.id);
}

void Loop::handle(Command& command) {
  std::visit([this](auto& one) { on(one); }, command);
}

void Loop::run() {
  while (const auto id = timers_.due(now_)) expire(*id);
  running_.clear();
  std::swap(running_, queue_);
  for (const Id id : running_) {
    if (const auto task = tasks_.find(id); task != tasks_.end())
      run(task->second);
    else if (const auto listener = listeners_.find(id); listener != listeners_.end())
      run(listener->second);
  }
}

void Loop::queue(Task& task) {
  if (std::exchange(task.queued, true)) return;
  queue_.push_back(task.id);
}

void Loop::run(Task& task) {
  task.queued = false;
  touch(task);
  guarded(task.id, [&] {
    if (task.phase != Task::Phase::relaying) {
      Side& client = task.connection.client;
      task.connection.keep();
      client.inspect();
      if (client.error) return end(task, Reason::reset);
      if (task.phase == Task::Phase::connecting) return finishConnect(task);
      return answerPeek(task, serverSpoke(task));
    }
    const Connection& connection = task.connection;
    const std::uint64_t before = connection.bytesFromClient() + connection.bytesFromServer();
    const bool wasHalfClosed = connection.halfClosed();
    const bool wasConnecting = connection.server.connecting;
    const auto state = task.connection.run(workspace_);
    if (connection.server.connecting && connection.server.error && !isReset(connection.server.error))
      return fail(task, connectError(task, connection.server.error));
    if (wasConnecting && !connection.server.connecting) armIdle(task);
    if (connection.bytesFromClient() + connection.bytesFromServer() != before) task.lastActive = now_;
    if (state == Connection::State::runnable) queue(task);
    if (state != Connection::State::ended) {
      if (connection.halfClosed() != wasHalfClosed) armIdle(task);
      return;
    }
    if (connection.error() == 0) return end(task, Reason::end);
    if (isReset(connection.error())) return end(task, Reason::reset);
    end(task, Reason::error, socket::Error(connection.error(), "read"));
  });
}

void Loop::expire(Id id) {
  if (const auto listener = listeners_.find(id); listener != listeners_.end()) {
    timers_.disarm(listener->second.timer);
    if (!listener->second.options.fd) return endAll(id);
    return run(listener->second);
  }
  Task& task = tasks_.at(id);
  timers_.disarm(task.timer);
  if (task.phase == Task::Phase::undecided) return answerPeek(task, true);
  if (task.connection.server.connecting) return fail(task, connectError(task, ETIMEDOUT));
  armIdle(task);
}

// ---- relay ----------------------------------------------------------------------------------------------------------

void Loop::on(RelayCommand& command) {
  Task& task = add(command.id, Task::Phase::relaying);
  Connection& connection = task.connection;
  connection.client.fd = std::move(command.client);
  connection.server.fd = std::move(command.server);
  connection.counters.own = command.counters;
  connection.counters.add(Counter::total, 1);
  connection.counters.add(Counter::open, 1);
  task.limits = command.limits;
  guarded(command.id, [&] {
    for (const auto& [side, part] : {std::pair(&connection.client, Part::client), {&connection.server, Part::server}}) {
      socket::setNonBlocking(side->fd.get());
      prepare(side->fd.get(), command.limits);
      side->watch.token = tokenOf(command.id, part);
      poller_.add(side->fd.get(), side->watch);
    }
    connection.start(command.engine, std::move(command.clientPreface), std::move(command.serverPreface));
    startRelay(task);
  });
}

// Sockets that are not TCP have none of this.
void Loop::setLimits(int fd, const Limits& limits) {
  try {
    if (limits.keepAlive > 0) socket::setKeepAlive(fd, limits.keepAlive);
    if (limits.userTimeout > 0) socket::setUserTimeout(fd, limits.userTimeout);
  } catch (const socket::Error&) {
  }
}

// For what was not opened here: an urgent byte must stay in its place in the stream.
void Loop::prepare(int fd, const Limits& limits) {
  try {
    socket::setUrgentInline(fd);
  } catch (const socket::Error&) {
  }
  setLimits(fd, limits);
}

void Loop::startRelay(Task& task) {
  task.phase = Task::Phase::relaying;
  task.setup.reset();
  task.lastActive = now_;
  task.connection.awaitsConnect = task.timer || task.limits.idle || task.limits.halfClose;
  // So far as anybody knows.
  task.connection.client.writable = true;
  task.connection.server.writable = true;
  if (!task.connection.server.connecting) armIdle(task);
  queue(task);
}

// Waits for the idle limit to be over, or finds that it is.
void Loop::armIdle(Task& task) {
  const std::int64_t limit = task.connection.halfClosed() ? task.limits.halfClose : task.limits.idle;
  if (limit == 0) return timers_.disarm(task.timer);
  const std::int64_t deadline = task.lastActive + limit;
  if (deadline > now_) return timers_.arm(task.timer, deadline, task.id);
  end(task, Reason::idle);
}

// ---- ends -----------------------------------------------------------------------------------------------------------

void Loop::on(DestroyCommand& command) {
  const auto found = tasks_.find(command.id);
  if (found == tasks_.end()) return;
  Task& task = found->second;
  if (task.connection.client.fd) return end(task, Reason::destroyed);
  fail(task, connectError(task, ECANCELED));
}

void Loop::end(Task& task, Reason reason, const std::optional<socket::Error>& failure) {
  if (reason != Reason::end) task.connection.abort(workspace_);
  if (!task.silent)
    events_.emplace_back(
        EndedEvent{task.id, reason, failure, task.connection.bytesFromClient(), task.connection.bytesFromServer()});
  forget(task);
}

void Loop::fail(Task& task, const socket::Error& failure) {
  if (task.connection.server.connecting) task.connection.counters.add(Counter::connectErrors, 1);
  if (task.server != 0 || task.connection.client.fd) return end(task, Reason::error, failure);
  events_.emplace_back(FailedEvent{task.id, failure});
  forget(task);
}

void Loop::handOut(Task& task, UniqueFd& fd) {
  Side& client = task.connection.client;
  poller_.remove(fd.get(), &fd == &client.fd ? client.watch : task.connection.server.watch);
  if (task.phase == Task::Phase::undecided)
    events_.emplace_back(SocketEvent{task.id, std::move(fd)});
  else
    socket::setNoDelay(fd.get()),
        events_.emplace_back(ConnectedEvent{task.id, std::move(fd), task.setup->localPortKept});
  forget(task);
}

void Loop::close(Connection& connection) {
  for (Side* side : {&connection.client, &connection.server}) poller_.close(std::move(side->fd), side->watch);
}

void Loop::forget(Task& task) {
  timers_.disarm(task.timer);
  close(task.connection);
  task.connection.counters.add(Counter::open, ~std::uint64_t{0});  // minus one
  const auto listener = listeners_.find(task.server);
  tasks_.erase(task.id);
  if (listener == listeners_.end()) return;
  --listener->second.open;
  closeIfDone(listener->second);
}

}  // namespace tproxy::relay
