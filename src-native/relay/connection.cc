#include "relay/connection.h"

#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "socket/transparent.h"

namespace tproxy::relay {

void Side::latch(const Ready& ready) {
  // After an error every call returns at once and tells it.
  readable |= ready.readable || ready.ended || ready.failed;
  writable |= ready.writable || ready.failed;
  urgent |= ready.urgent;
  suspect |= ready.failed;
  over |= ready.ended || ready.failed;
  ended |= (ready.ended && !ready.failed) || (ready.atEnd && error == 0);
  atEnd |= ready.atEnd;
  over |= atEnd;
  connecting &= ready.failed || !(ready.writable || ready.received || ready.atEnd);
  if (ready.error && error == 0) error = ready.error;
  watch.armed &= static_cast<std::uint8_t>(~ready.disarmed);
  watch.hungUp |= ready.failed || ready.error != 0;
}

void Side::inspect() {
  if (suspect && error == 0 && fd) error = socket::takeError(fd.get());
  suspect = false;
}

void Connection::start(Engine engine, std::vector<std::byte> clientPreface, std::vector<std::byte> serverPreface) {
  fromClient_.mover = Mover(engine, std::move(clientPreface));
  fromServer_.mover = Mover(engine, std::move(serverPreface));
}

Connection::State Connection::run(Workspace& workspace) {
  const State up = move(client, server, fromClient_, fromServer_, workspace);
  const State down = move(server, client, fromServer_, fromClient_, workspace);
  countPipes();
  keep();
  if (fromClient_.done && fromServer_.done) return State::ended;
  if (up == State::runnable || down == State::runnable) return State::runnable;
  // Reading has told most errors by now, behind the last bytes. What is left belongs to a side that is not read at
  // present.
  client.inspect();
  server.inspect();
  if (error() == 0) return State::blocked;
  if (client.error && server.error) {
    abort(workspace);
    return State::ended;
  }
  const bool over =
      client.error ? settle(client, server, fromClient_, workspace) : settle(server, client, fromServer_, workspace);
  return over ? State::ended : State::blocked;
}

Connection::State Connection::move(Side& from, Side& to, Direction& way, const Direction& back, Workspace& workspace) {
  std::size_t budget = workspace.bytesPerTurn();
  while (!way.done && to.error == 0) {
    if (!way.mover.empty()) {
      if (!to.writable || way.mover.busy()) return State::blocked;
      // Nothing holds the first message back.
      if (way.bytes > 0 && !std::exchange(to.noDelay, true)) socket::setNoDelay(to.fd.get());
      if (!from.atEnd && giveToPoller(to, way, workspace)) return State::blocked;
      noteGiven(to, way, way.mover.give(to.fd.get(), from.atEnd, workspace));
      continue;
    }
    if (way.end) {          // only ever with nothing left to give: FIN must not overtake bytes
      if (to.connecting) {  // shutdown would end that
        to.writable = false;
        return State::blocked;
      }
      if (!back.done) shutdown(to.fd.get(), SHUT_WR);  // else closing says it
      way.done = true;
      return State::blocked;
    }
    if (from.atEnd) {
      if (!from.complete()) return State::blocked;
      way.end = true;
      continue;
    }
    // Nothing is taken that could not be passed on: the sender's window closes instead.
    if (from.watch.receiving() || !from.readable || !to.writable) return State::blocked;
    if (budget == 0) return State::runnable;

    if (way.mover.takeByPoller(from.fd.get(), from.watch, workspace)) return State::blocked;
    const Moved taken = way.mover.take(from.fd.get(), workspace);
    budget -= std::min(budget, taken.bytes);
    noteTaken(from, way, taken, workspace);
    // Bytes may come although an error of that side is known already: RST after FIN leaves what was sent before.
    if (way.mover.empty() && !way.end) return State::blocked;
  }
  return State::blocked;
}

void Connection::noteTaken(Side& from, Direction& way, Moved taken, Workspace& workspace) {
  // splice stops before an urgent byte: it then says EAGAIN, or end of stream, with bytes still to read. One recv
  // steps over.
  if (taken.bytes == 0) {
    int unread = 0;
    const bool stopped = taken.error == EAGAIN
                             ? std::exchange(from.urgent, false)
                             : taken.end() && ioctl(from.fd.get(), FIONREAD, &unread) == 0 && unread > 0;
    if (stopped) taken = way.mover.takeCopying(from.fd.get(), workspace);
  }
  if (taken.error == EAGAIN)
    from.readable = false;
  else if (taken.error)
    from.error = taken.error;
  else if (taken.end())
    way.end = from.complete();
  else if (taken.drained && !from.over && !from.urgent)
    from.readable = false;
}

void Connection::taken(Side& from, int result, Workspace& workspace) {
  Direction& way = directionFrom(from);
  const Moved taken = way.mover.taken(result, workspace);
  if (taken.error != EINTR) noteTaken(from, way, taken, workspace);
  way.mover.keep();
}

void Connection::noteGiven(Side& to, Direction& way, const Moved& given) {
  if (given.error == EINTR) return;
  if (given.error == EAGAIN) {
    to.writable = false;
    if (!to.connecting) way.mover.slowDown();
  } else if (given.error) {
    if (to.error == 0) to.error = given.error;
  } else {
    to.connecting = false;
    way.bytes += given.bytes;
    counters.add(way.counter, given.bytes);
    counters.add(given.spliced ? Counter::spliced : Counter::copied, given.bytes);
  }
}

// What the poller sends counts as gone until it comes back.
bool Connection::giveToPoller(Side& to, Direction& way, Workspace& workspace) {
  if (way.mover.giveByPoller(to.fd.get(), to.watch, workspace)) return true;
  if (to.suspect || (to.connecting && awaitsConnect)) return false;
  const std::size_t bytes = way.mover.sendByPoller(to.fd.get(), to.watch, workspace);
  if (bytes == 0) return false;
  way.presumed = to.connecting;
  noteGiven(to, way, {.bytes = bytes});
  return true;
}

void Connection::unsent(Side& to, Unsent unsent, Workspace& workspace) {
  Direction& way = directionTo(to);
  const std::size_t bytes = unsent.bytes.bytes().size();
  way.bytes -= bytes;
  counters.add(way.counter, std::uint64_t{0} - bytes);
  counters.add(Counter::copied, std::uint64_t{0} - bytes);
  way.mover.unsent(std::move(unsent.bytes), workspace);
  to.connecting |= way.presumed;
  noteGiven(to, way, {.error = unsent.error});
}

void Connection::spliced(Side& to, int result, Workspace& workspace) {
  Direction& way = directionTo(to);
  noteGiven(to, way, way.mover.spliced(result, workspace));
}

Wanted Connection::wanted(const Side& side) const {
  const Direction& in = &side == &client ? fromClient_ : fromServer_;
  const Direction& out = &side == &client ? fromServer_ : fromClient_;
  const bool hasMore = !out.mover.empty() || (out.end && !out.done);
  Wanted wanted{.output = (!side.writable && hasMore) || (side.connecting && awaitsConnect), .ended = side.over};
  if (in.end || side.atEnd || side.error) return wanted;
  if (!in.mover.streaming())
    wanted.input = Wanted::Input::receive;
  else if (!side.readable && in.mover.empty())
    wanted.input = Wanted::Input::poll;
  return wanted;
}

bool Connection::settle(Side& side, Side& other, const Direction& fromSide, Workspace& workspace) {
  if (!fromSide.end && !side.complete()) {
    abort(workspace);
    return true;
  }
  // It said all it had to say and was reset for not listening any more, as happens to who closes early. The other side
  // must still get those bytes; what it says itself then meets RST, as it would without us.
  if (!fromSide.done) return false;
  drop(workspace);
  closeGently(other.fd);
  abort(workspace);
  return true;
}

void Connection::drop(Workspace& workspace) {
  fromClient_.mover.drop(workspace);
  fromServer_.mover.drop(workspace);
  countPipes();
}

void Connection::abort(Workspace& workspace) {
  drop(workspace);
  for (const Side* side : {&client, &server})
    if (side->fd) socket::setResetOnClose(side->fd.get());
}

// Once a turn: within one, pipes come and go.
void Connection::countPipes() {
  const unsigned held = (fromClient_.mover.holdsPipe() ? 1u : 0u) + (fromServer_.mover.holdsPipe() ? 1u : 0u);
  if (held != pipes_) counters.add(Counter::pipes, std::uint64_t{held} - pipes_);
  pipes_ = held;
}

void closeGently(UniqueFd& fd) {
  constexpr std::size_t step = std::size_t{1024} * 1024;
  constexpr int steps = 16;  // a fast sender must not keep us here
  for (int i = 0; i < steps && recv(fd.get(), nullptr, step, MSG_TRUNC | MSG_DONTWAIT) > 0; ++i) {
  }
  fd.reset();
}

}  // namespace tproxy::relay
