#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>

#include "relay/loop.h"
#include "relay/proxy_protocol.h"
#include "socket/transparent.h"

namespace tproxy::relay {

namespace {

bool outOfDescriptors(int error) { return error == EMFILE || error == ENFILE; }

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

// Nothing was sent on this connection before, so there is room for it.
void sendProxyHeader(const UniqueFd& fd, const std::string& header) {
  const ssize_t sent = send(fd.get(), header.data(), header.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(header.size())) return;
  throw socket::Error(sent < 0 ? errno : ENOBUFS, "send");
}

}  // namespace

// ---- the decision ---------------------------------------------------------------------------------------------------

void Loop::on(PeekCommand& command) {
  const auto found = tasks_.find(command.id);
  if (found == tasks_.end() || found->second.phase != Task::Phase::undecided) return;
  Task& task = found->second;
  answerPeek(task, true);  // one at a time: an earlier one gets what there is
  task.setup->peek = command;
  if (command.timeout > 0) timers_.arm(task.timer, now_ + command.timeout, task.id);
  answerPeek(task, command.timeout <= 0 || serverSpoke(task));
}

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

// ---- connecting -----------------------------------------------------------------------------------------------------

void Loop::on(ConnectCommand& command) {
  Task& task = add(command.id, Task::Phase::connecting);
  task.setup = std::make_unique<Setup>();
  guarded(command.id, [&] { connect(task, resolve(command.upstream), command.upstream); });
}

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

void Loop::on(OpenerCommand& command) { opener_ = std::move(command.opener); }

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

socket::Error Loop::connectError(const Task& task, int error) const {
  if (!task.setup) return {error, "connect"};
  const socket::Address& upstream = task.setup->upstream;
  return {error, "connect", upstream.text(), upstream.port()};
}

}  // namespace tproxy::relay
