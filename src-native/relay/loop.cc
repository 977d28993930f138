#include "relay/loop.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>

#include "relay/proxy_protocol.h"
#include "socket/transparent.h"

namespace tproxy::relay {

namespace {

constexpr int acceptsPerTurn = 8;     // a turn with many is long, and whoever has a connection already waits for it
constexpr int acceptsAtClose = 4096;  // as many as wait at most
constexpr std::int64_t acceptRetryMs = 100;

// A token is an id and what of it became ready. A connect that came before the decision, and may not be of use, has a
// token of its own.
enum class Part : std::uint64_t { client, server, listener, preconnected };
std::uint64_t tokenOf(Id id, Part part) { return id << 2 | static_cast<std::uint64_t>(part); }

std::int64_t monotonicMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

UniqueFd openReserve() { return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

bool outOfDescriptors(int error) { return error == EMFILE || error == ENFILE; }

// Sockets that are not TCP have none of this.
void setLimits(int fd, const Limits& limits) {
  try {
    if (limits.keepAlive > 0) socket::setKeepAlive(fd, limits.keepAlive);
    if (limits.userTimeout > 0) socket::setUserTimeout(fd, limits.userTimeout);
  } catch (const socket::Error&) {
  }
}

// For what was not opened here: an urgent byte must stay in its place in the stream.
void prepare(int fd, const Limits& limits) {
  try {
    socket::setUrgentInline(fd);
  } catch (const socket::Error&) {
  }
  setLimits(fd, limits);
}

Endpoint describe(const socket::Address& address, int fd) {
  return {address.family() == AF_INET6, address.text(fd), address.port()};
}

socket::ConnectOptions resolve(const Upstream& upstream) {
  socket::ConnectOptions options{.to = socket::Address(upstream.address, upstream.port),
                                 .portOptional = upstream.localPortOptional,
                                 .mark = upstream.mark};
  if (!upstream.localAddress.empty())
    options.from = socket::Address(upstream.localAddress, upstream.localPort);
  else if (upstream.localPort != 0)
    options.from = socket::Address(options.to.family() == AF_INET ? "0.0.0.0" : "::", upstream.localPort);
  return options;
}

// Of the errors that end a connection, those that only say that the peer broke it off.
bool isReset(int error) { return error == ECONNRESET || error == EPIPE; }

// Nothing was sent on this connection before, so there is room for it.
void sendProxyHeader(const UniqueFd& fd, const std::string& header) {
  const ssize_t sent = send(fd.get(), header.data(), header.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(header.size())) return;
  throw socket::Error(sent < 0 ? errno : ENOBUFS, "send");
}

}  // namespace

Loop::Loop(Poller& poller, std::atomic<Id>& ids)
    : poller_(poller), ids_(ids), workspace_{.poller = poller}, reserve_(openReserve()) {}

Loop::~Loop() {
  for (auto& [id, task] : tasks_) {
    task.connection.abort(workspace_);
    close(task.connection);
  }
}

void Loop::close(Connection& connection) {
  for (Side* side : {&connection.client, &connection.server}) poller_.close(std::move(side->fd), side->watch);
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

void Loop::queue(Listener& listener) { queue_.push_back(listener.options.id); }

// Runs one step in the life of a task; a system call that fails there ends that task and nothing else.
template <typename Step>
void Loop::guarded(Id id, Step step) {
  try {
    step();
  } catch (const socket::Error& failure) {
    if (const auto task = tasks_.find(id); task != tasks_.end()) fail(task->second, failure);
  }
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

// ---- accept ---------------------------------------------------------------------------------------------------------

void Loop::run(Listener& listener) {
  if (!listener.options.fd || listener.timer) return;
  touched_.push_back(listener.options.id);
  for (int i = 0; i < acceptsPerTurn; ++i)
    if (!acceptOne(listener)) return;
  queue(listener);
}

bool Loop::acceptOne(Listener& listener) {
  if (!reserve_ && !(reserve_ = openReserve())) {
    backOff(listener, errno);
    return false;
  }
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  UniqueFd fd(
      accept4(listener.options.fd.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd) {
    listener.failing = false;
    try {
      adopt(listener, std::move(fd), socket::Address(peer));
    } catch (const socket::Error&) {  // the connection is gone already, or cannot be watched
      Counters::add(listener.options.counters, Counter::acceptErrors, 1);
    }
    return true;
  }
  switch (errno) {
    case EAGAIN:
      listener.acceptable = false;
      return false;
    // accept(2) hands on errors that the network has for the new connection: the next one may be fine.
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EPERM:
      return true;
    default:
      backOff(listener, errno);
      return false;
  }
}

void Loop::adopt(Listener& listener, UniqueFd fd, const socket::Address& source) {
  const AcceptCommand& options = listener.options;
  const socket::Address destination =
      options.redirected ? socket::originalDestination(fd.get()).address : socket::localAddress(fd.get());
  const Id id = ids_.fetch_add(1, std::memory_order_relaxed);
  Watch watch{.token = tokenOf(id, Part::client)};
  poller_.add(fd.get(), watch);

  Task& task = add(id, Task::Phase::undecided);
  task.connection.client.watch = watch;
  task.server = options.id;
  task.silent = !options.decide;
  task.setup = std::make_unique<Setup>(Setup{.source = source, .originalDestination = destination});
  task.connection.client.fd = std::move(fd);
  task.connection.counters.server = options.counters;
  Counters::add(options.counters, Counter::total, 1);
  Counters::add(options.counters, Counter::open, 1);
  ++listener.open;

  if (options.decide) {
    if (options.preconnect) preconnect(task, upstreamOf(listener, task));
    // Its upstream socket will need a descriptor too: one is held for it in that very place.
    if (!task.connection.server.fd) task.connection.server.fd = std::move(reserve_);
    const int client = task.connection.client.fd.get();
    events_.emplace_back(FlowEvent{options.id, id, describe(source, client), describe(destination, client)});
    return;
  }
  task.connection.client.noDelay = true;  // it has inherited that
  task.setup->engine = options.engine;
  task.limits = options.limits;
  guarded(id, [&] { connect(task, upstreamOf(listener, task), options.upstream); });
}

// Where a connection goes if nobody decides otherwise, and from where.
socket::ConnectOptions Loop::upstreamOf(const Listener& listener, const Task& task) const {
  const AcceptCommand& options = listener.options;
  socket::ConnectOptions upstream{.to = listener.to.value_or(task.setup->originalDestination),
                                  .from = listener.from,
                                  .portOptional = options.upstream.localPortOptional,
                                  .mark = options.upstream.mark};
  if (options.fromClient) {
    upstream.from = task.setup->source;
    if (!options.clientPort) upstream.from->setPort(0);
  }
  return upstream;
}

// The connections stay in the backlog and are looked at again soon: accept must neither spin nor stall.
void Loop::backOff(Listener& listener, int error) {
  Counters::add(listener.options.counters, Counter::acceptErrors, 1);
  if (!std::exchange(listener.failing, true))
    events_.emplace_back(AcceptFailedEvent{listener.options.id, socket::Error(error, "accept")});
  timers_.arm(listener.timer, now_ + acceptRetryMs, listener.options.id);
}

// ---- flows that wait for a decision ---------------------------------------------------------------------------------

void Loop::answerPeek(Task& task, bool now) {
  std::optional<PeekCommand>& peek = task.setup->peek;
  if (!peek) return;
  const int fd = task.connection.client.fd.get();
  int there = 0;
  ioctl(fd, FIONREAD, &there);
  const std::size_t bytes = std::min(peek->bytes, static_cast<std::size_t>(std::max(there, 0)));
  if (bytes < peek->bytes && !task.connection.client.ended && !now) return;  // more may come: an event will tell

  std::vector<std::byte> data(bytes);
  const ssize_t got = bytes == 0 ? 0 : recv(fd, data.data(), bytes, MSG_PEEK | MSG_DONTWAIT);
  data.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  events_.emplace_back(PeekedEvent{task.id, std::move(data)});
  peek.reset();
  timers_.disarm(task.timer);
}

// Or cannot be reached, which is told the same way: the client may well be waiting for it.
bool Loop::serverSpoke(const Task& task) { return task.setup->preconnected && task.connection.server.readable; }

// ---- connect --------------------------------------------------------------------------------------------------------

// What goes wrong here is told when it is decided: the connect is then tried again.
void Loop::preconnect(Task& task, const socket::ConnectOptions& options) {
  if (isOwnListener(task, options.to)) return;
  try {
    dial(task, options);
    task.setup->preconnected = options;
  } catch (const socket::Error&) {
  }
}

void Loop::connect(Task& task, const socket::ConnectOptions& options, const Upstream& upstream) {
  task.phase = Task::Phase::connecting;
  touch(task);
  Setup& setup = *task.setup;
  Side& server = task.connection.server;
  setup.upstream = options.to;
  setup.proxyProtocol = upstream.proxyProtocol;
  task.connection.start(setup.engine, {}, {});
  if (!setup.preconnected) server.connecting = true;
  if (isOwnListener(task, options.to)) throw socket::Error(ELOOP, "connect", options.to.text(), options.to.port());
  if (setup.preconnected && *setup.preconnected != options) {
    socket::setResetOnClose(server.fd.get());
    poller_.close(std::move(server.fd), server.watch);
    server = {};
    setup.preconnected.reset();
  }
  if (!setup.preconnected) dial(task, options);
  if (upstream.timeout > 0) timers_.arm(task.timer, now_ + upstream.timeout, task.id);
  if (server.writable || !awaitsServer(task)) finishConnect(task);
}

void Loop::dial(Task& task, socket::ConnectOptions options) {
  if (opener_) options.opener = &opener_;
  Side& server = task.connection.server;
  server.connecting = true;
  server.fd.reset();
  socket::Connecting connecting;
  try {
    connecting = socket::connect(options);
  } catch (const socket::Error& failure) {
    if (!outOfDescriptors(failure.errnum()) || !reserve_) throw;
    reserve_.reset();
    connecting = socket::connect(options);
  }
  if (options.from && options.from->port() != 0) task.setup->localPortKept = connecting.portKept;
  server.fd = std::move(connecting.fd);
  server.watch.token = tokenOf(task.id, task.phase == Task::Phase::undecided ? Part::preconnected : Part::server);
  poller_.add(server.fd.get(), server.watch);
  server.connecting = !connecting.established;
  server.writable = connecting.established;
}

// A client that spoke to the listener itself, not to somebody beyond it: connecting to its destination would come back
// here, again and again.
bool Loop::isOwnListener(const Task& task, const socket::Address& destination) const {
  const auto listener = listeners_.find(task.server);
  return listener != listeners_.end() && destination == task.setup->originalDestination &&
         destination.port() == listener->second.address.port() && socket::isLocal(destination);
}

// Bytes may be sent as soon as the kernel has begun to connect: whatever is sent or received then tells how it went. But
// who has to be told, or spoken to first, must wait.
bool Loop::awaitsServer(const Task& task) const {
  return !task.silent || task.setup->proxyProtocol != 0 || listeners_.at(task.server).options.tell;
}

void Loop::finishConnect(Task& task) {
  Side& server = task.connection.server;
  server.inspect();
  if (server.error) return fail(task, connectError(task, server.error));
  if (!server.writable && awaitsServer(task)) return;
  if (!server.connecting) timers_.disarm(task.timer);
  if (!task.connection.client.fd) return handOut(task, server.fd);
  setLimits(server.fd.get(), task.limits);
  const Setup& setup = *task.setup;
  if (setup.proxyProtocol != 0) {
    socket::setNoDelay(server.fd.get());
    server.noDelay = true;
    sendProxyHeader(server.fd, proxyHeader(setup.proxyProtocol, setup.source, setup.originalDestination));
  }
  tellOpened(task);
  startRelay(task);
}

void Loop::tellOpened(Task& task) {
  if (!task.silent) {
    events_.emplace_back(OpenedEvent{task.id, task.setup->localPortKept});
  } else if (listeners_.at(task.server).options.tell) {
    task.silent = false;
    const int fd = task.connection.client.fd.get();
    events_.emplace_back(RelayedEvent{task.server, task.id, describe(task.setup->source, fd),
                                      describe(task.setup->originalDestination, fd)});
  }
}

// ---- relay ----------------------------------------------------------------------------------------------------------

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

socket::Error Loop::connectError(const Task& task, int error) const {
  if (!task.setup) return {error, "connect"};
  const socket::Address& upstream = task.setup->upstream;
  return {error, "connect", upstream.text(), upstream.port()};
}

// ---- ends -----------------------------------------------------------------------------------------------------------

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

void Loop::endAll(Id server) {
  std::vector<Id> ids;
  for (const auto& [id, task] : tasks_)
    if (task.server == server) ids.push_back(id);
  for (const Id id : ids) end(tasks_.at(id), Reason::destroyed);
}

void Loop::closeIfDone(Listener& listener) {
  if (listener.options.fd || listener.open > 0) return;
  const Id id = listener.options.id;
  timers_.disarm(listener.timer);
  events_.emplace_back(ClosedEvent{id});
  listeners_.erase(id);
}

// ---- commands -------------------------------------------------------------------------------------------------------

Loop::Task& Loop::add(Id id, Task::Phase phase) {
  Task& task = tasks_.try_emplace(id, Task{.id = id, .phase = phase}).first->second;
  touch(task);
  return task;
}

void Loop::on(ConnectCommand& command) {
  Task& task = add(command.id, Task::Phase::connecting);
  task.setup = std::make_unique<Setup>();
  guarded(command.id, [&] { connect(task, resolve(command.upstream), command.upstream); });
}

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

void Loop::on(AcceptCommand& command) {
  const Id id = command.id;
  Listener& listener = listeners_.emplace(id, Listener{.options = std::move(command)}).first->second;
  try {
    const int fd = listener.options.fd.get();
    listener.address = socket::localAddress(fd);
    const Upstream& upstream = listener.options.upstream;
    if (!upstream.address.empty()) listener.to = socket::Address(upstream.address, upstream.port);
    if (!upstream.localAddress.empty()) listener.from = socket::Address(upstream.localAddress, upstream.localPort);
    socket::setNonBlocking(fd);
    // Accepted sockets inherit it. Those that are handed out stay as the kernel makes them.
    if (!listener.options.decide) {
      prepare(fd, listener.options.limits);
      socket::setNoDelay(fd);
    }
    listener.watch.token = tokenOf(id, Part::listener);
    poller_.add(fd, listener.watch);
    touched_.push_back(id);
  } catch (const socket::Error& failure) {
    events_.emplace_back(AcceptFailedEvent{id, failure});
    listener.options.fd.reset();
    closeIfDone(listener);
  }
}

void Loop::on(DecideCommand& command) {
  const auto found = tasks_.find(command.id);
  if (found == tasks_.end() || found->second.phase != Task::Phase::undecided) return;
  Task& task = found->second;
  answerPeek(task, true);
  Connection& connection = task.connection;
  switch (command.kind) {
    case DecideCommand::Kind::socket:
      return handOut(task, connection.client.fd);
    case DecideCommand::Kind::reset:
      return end(task, Reason::destroyed);
    case DecideCommand::Kind::close:
      closeGently(connection.client.fd);
      return end(task, Reason::destroyed);
    case DecideCommand::Kind::relay:
      connection.counters.own = command.counters;
      Counters::add(command.counters, Counter::total, 1);
      Counters::add(command.counters, Counter::open, 1);
      task.setup->engine = command.engine;
      task.limits = command.limits;
      prepare(connection.client.fd.get(), command.limits);
      guarded(task.id, [&] { connect(task, resolve(command.upstream), command.upstream); });
  }
}

void Loop::on(PeekCommand& command) {
  const auto found = tasks_.find(command.id);
  if (found == tasks_.end() || found->second.phase != Task::Phase::undecided) return;
  Task& task = found->second;
  answerPeek(task, true);  // one at a time: an earlier one gets what there is
  task.setup->peek = command;
  if (command.timeout > 0) timers_.arm(task.timer, now_ + command.timeout, task.id);
  answerPeek(task, command.timeout <= 0 || serverSpoke(task));
}

void Loop::on(DestroyCommand& command) {
  const auto found = tasks_.find(command.id);
  if (found == tasks_.end()) return;
  Task& task = found->second;
  if (task.connection.client.fd) return end(task, Reason::destroyed);
  fail(task, connectError(task, ECANCELED));
}

void Loop::on(TellCommand& command) {
  if (const auto found = listeners_.find(command.id); found != listeners_.end())
    found->second.options.tell = command.tell;
}

void Loop::on(StopAcceptingCommand& command) {
  const auto found = listeners_.find(command.id);
  if (found == listeners_.end()) return;
  Listener& listener = found->second;
  // Closing resets connections that nobody has accepted yet; from here on there is only a moment for more to come.
  for (int i = 0; listener.options.fd && !listener.timer && i < acceptsAtClose && acceptOne(listener); ++i) {
  }
  timers_.disarm(listener.timer);
  poller_.close(std::move(listener.options.fd), listener.watch);
  poller_.finishClosing();  // whoever hears of it may listen on that port at once
  if (command.drain > 0) timers_.arm(listener.timer, now_ + command.drain, command.id);
  closeIfDone(listener);
}

void Loop::on(OpenerCommand& command) { opener_ = std::move(command.opener); }

}  // namespace tproxy::relay
