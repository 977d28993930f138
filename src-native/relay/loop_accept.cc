#include <fcntl.h>
#include <sys/socket.h>

#include "relay/loop.h"

namespace tproxy::relay {

namespace {

constexpr int acceptsPerTurn = 8;     // a turn with many is long, and whoever has a connection already waits for it
constexpr int acceptsAtClose = 4096;  // as many as wait at most
constexpr std::int64_t acceptRetryMs = 100;

}  // namespace

// ---- listening ------------------------------------------------------------------------------------------------------

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

void Loop::on(TellCommand& command) {
  if (const auto found = listeners_.find(command.id); found != listeners_.end())
    found->second.options.tell = command.tell;
}

void Loop::queue(Listener& listener) { queue_.push_back(listener.options.id); }

void Loop::run(Listener& listener) {
  if (!listener.options.fd || listener.timer) return;
  touched_.push_back(listener.options.id);
  for (int i = 0; i < acceptsPerTurn; ++i)
    if (!acceptOne(listener)) return;
  queue(listener);
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

// ---- accepting ------------------------------------------------------------------------------------------------------

UniqueFd Loop::openReserve() { return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

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

Endpoint Loop::describe(const socket::Address& address, int fd) {
  return {address.family() == AF_INET6, address.text(fd), address.port()};
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

}  // namespace tproxy::relay
