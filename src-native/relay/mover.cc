#include "relay/mover.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "relay/poller.h"

namespace tproxy::relay {

namespace {

// No SPLICE_F_MORE: it would cork the last bytes of every exchange. SPLICE_F_NONBLOCK is for the pipe, O_NONBLOCK for
// the socket; both are needed.
constexpr unsigned spliceFlags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK;

// From the first mode to the second after so many reads in a row that were full, and back after so many that were short.
constexpr std::size_t shortRead = std::size_t{16} * 1024;
constexpr std::uint8_t fullBuffers = shortRead / ReceiveBuffers::size;
constexpr std::size_t shortMessage = std::size_t{8} * 1024;
constexpr std::uint8_t shortReads = 64;
// So much is kept for a receiver that is not there yet, before its sender has to wait.
constexpr std::size_t mostHeld = std::size_t{64} * 1024;

// A security policy, a seccomp filter, or a socket type that cannot.
bool spliceRefused(int error) { return error == EPERM || error == EACCES || error == ENOSYS || error == EINVAL; }

template <typename Call>
ssize_t untilUninterrupted(Call call) {
  ssize_t result;
  do result = call();
  while (result < 0 && errno == EINTR);
  return result;
}

Moved moved(ssize_t result, bool spliced) {
  if (result < 0) return {.error = errno == EWOULDBLOCK ? EAGAIN : errno};
  return {.bytes = static_cast<std::size_t>(result), .spliced = spliced};
}

// A worker that is told to go gives ECANCELED.
Moved movedByPoller(int result) {
  if (result < 0) return {.error = result == -ECANCELED ? EINTR : -result};
  return {.bytes = static_cast<std::size_t>(result), .spliced = true};
}

}  // namespace

Mover::Mover(Engine engine, std::vector<std::byte> preface) : engine_(engine) {
  if (preface.empty()) return;
  cargo_ = std::make_unique<Cargo>();
  cargo_->held = std::move(preface);
}

Cargo& Mover::cargo(Workspace& workspace) {
  if (!cargo_) {
    if (workspace.cargos.empty()) workspace.cargos.push_back(std::make_unique<Cargo>());
    cargo_ = std::move(workspace.cargos.back());
    workspace.cargos.pop_back();
  }
  return *cargo_;
}

// ---- from the one socket --------------------------------------------------------------------------------------------

Moved Mover::take(int from, Workspace& workspace) {
  return streaming_ && engine_ != Engine::copy ? takeSplicing(from, workspace) : takeCopying(from, workspace);
}

Moved Mover::takeSplicing(int from, Workspace& workspace) {
  std::optional<Pipe> pipe = workspace.pipes.borrow();
  if (!pipe) return takeCopying(from, workspace);
  const std::size_t room = std::min(pipe->capacity, workspace.bytesPerTurn());
  Moved result = moved(
      untilUninterrupted([&] { return splice(from, nullptr, pipe->in.get(), nullptr, room, spliceFlags); }), true);
  if (result.bytes > 0) {
    // A pipe is full when its slots (one a page) are used up, and a slot holds at least one byte: with fewer bytes than
    // slots it was the socket that had no more.
    static const auto pageSize = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    result.drained = result.bytes < pipe->capacity / pageSize;
    noteRead(result.bytes, room);
    Cargo& cargo = this->cargo(workspace);
    cargo.pipe = std::move(pipe);
    cargo.inPipe = result.bytes;
    return result;
  }
  workspace.pipes.giveBack(std::move(*pipe));
  if (!spliceRefused(result.error)) return result;
  engine_ = Engine::copy;
  return takeCopying(from, workspace);
}

Moved Mover::takeCopying(int from, Workspace& workspace) {
  const auto room = std::span(workspace.buffer).first(streaming_ ? workspace.buffer.size() : shortRead);
  Moved result = moved(untilUninterrupted([&] { return recv(from, room.data(), room.size(), 0); }), false);
  if (!streaming_) workspace.shortAt = workspace.turn;
  if (result.bytes == 0) return result;
  result.drained = result.bytes < room.size();
  cargo(workspace).inBuffer = room.first(result.bytes);
  noteRead(result.bytes, room.size());
  return result;
}

void Mover::receive(Received received, Workspace& workspace) {
  noteRead(received.bytes().size(), ReceiveBuffers::size);
  cargo(workspace).received.push_back(std::move(received));
}

void Mover::noteRead(std::size_t bytes, std::size_t room) {
  if (streaming_) {
    inARow_ = bytes < shortMessage ? static_cast<std::uint8_t>(inARow_ + 1) : 0;
    if (inARow_ == shortReads) stream(false);
  } else {
    const auto buffers = static_cast<std::uint8_t>(room / ReceiveBuffers::size);
    inARow_ = bytes == room ? static_cast<std::uint8_t>(inARow_ + buffers) : 0;
    if (inARow_ >= fullBuffers) stream(true);
  }
}

void Mover::stream(bool streaming) {
  streaming_ = streaming;
  inARow_ = 0;
}

// ---- to the other ---------------------------------------------------------------------------------------------------

Moved Mover::give(int to, bool last, Workspace& workspace) {
  Moved result;
  if (cargo_->inPipe > 0)
    result = giveSpliced(to, workspace);
  else if (cargo_->heldFrom == cargo_->held.size() && cargo_->inBuffer.empty())
    result = giveReceived(to, last, workspace);
  else
    result = giveCopied(to);
  if (cargo_->empty()) workspace.takeBack(std::move(cargo_));
  return result;
}

Moved Mover::giveSpliced(int to, Workspace& workspace) {
  Cargo& cargo = *cargo_;
  // The exact length: asking for more would make the kernel wait for it before it sends the last part.
  const Moved result = moved(untilUninterrupted([&] {
                               return splice(cargo.pipe->out.get(), nullptr, to, nullptr, cargo.inPipe, spliceFlags);
                             }),
                             true);
  return noteSpliced(result, workspace);
}

Moved Mover::noteSpliced(Moved result, Workspace& workspace) {
  Cargo& cargo = *cargo_;
  if (spliceRefused(result.error) && emptyPipeIntoHeld(workspace)) {
    engine_ = Engine::copy;
    return {.error = EINTR};  // again, in the other way
  }
  if (result.end()) return {.error = EAGAIN};
  cargo.inPipe -= result.bytes;
  if (cargo.inPipe == 0) workspace.pipes.giveBack(*std::exchange(cargo.pipe, std::nullopt));
  return result;
}

Moved Mover::giveReceived(int to, bool last, Workspace& workspace) {
  Cargo& cargo = *cargo_;
  workspace.shortAt = workspace.turn;
  constexpr std::size_t most = 64;
  std::array<iovec, most> parts;
  const std::size_t count = std::min(most, cargo.received.size() - cargo.receivedFrom);
  for (std::size_t i = 0; i < count; ++i) {
    const auto bytes = cargo.received[cargo.receivedFrom + i].bytes();
    parts[i] = {.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
  }
  const bool all = cargo.receivedFrom + count == cargo.received.size();
  const int flags = MSG_NOSIGNAL | (last && all ? MSG_MORE : 0);
  const msghdr message{.msg_iov = parts.data(), .msg_iovlen = count};
  const Moved result =
      moved(untilUninterrupted([&] {
              return count == 1 ? send(to, parts[0].iov_base, parts[0].iov_len, flags) : sendmsg(to, &message, flags);
            }),
            false);
  cargo.forgetReceived(result.bytes);
  return result;
}

std::size_t Mover::sendByPoller(int to, const Watch& watch, Workspace& workspace) {
  Cargo& cargo = *cargo_;
  // While it streams, more is read and given at once: that must not overtake this.
  const bool lone =
      !streaming_ && cargo.receivedFrom + 1 == cargo.received.size() && cargo.heldFrom == cargo.held.size();
  if (!lone) return 0;
  Received& message = cargo.received[cargo.receivedFrom];
  const std::size_t bytes = message.bytes().size();
  if (!workspace.poller.send(to, watch, message)) return 0;
  workspace.shortAt = workspace.turn;
  cargo.forgetReceived(bytes);
  workspace.takeBack(std::move(cargo_));
  return bytes;
}

void Mover::unsent(Received bytes, Workspace& workspace) {
  Cargo& cargo = this->cargo(workspace);
  cargo.received.insert(cargo.received.begin() + static_cast<std::ptrdiff_t>(cargo.receivedFrom), std::move(bytes));
}

bool Mover::giveByPoller(int to, Watch& watch, Workspace& workspace) {
  Cargo& cargo = *cargo_;
  return cargo.splicing = cargo.inPipe > 0 && engine_ == Engine::ringSplice &&
                          workspace.poller.splice(cargo.pipe->out.get(), to, cargo.inPipe, watch, true);
}

bool Mover::takeByPoller(int from, Watch& watch, Workspace& workspace) {
  if (engine_ != Engine::ringSplice || !streaming_) return false;
  std::optional<Pipe> pipe = workspace.pipes.borrow();
  if (!pipe) return false;
  if (!workspace.poller.splice(from, pipe->in.get(), std::min(pipe->capacity, workspace.bytesPerTurn()), watch,
                               false)) {
    workspace.pipes.giveBack(std::move(*pipe));
    return false;
  }
  Cargo& cargo = this->cargo(workspace);
  cargo.pipe = std::move(pipe);
  return cargo.splicing = true;
}

Moved Mover::taken(int result, Workspace& workspace) {
  const Moved taken = movedByPoller(result);
  cargo_->splicing = false;
  cargo_->inPipe = taken.bytes;
  if (taken.bytes > 0) {
    noteRead(taken.bytes, cargo_->pipe->capacity);
    return taken;
  }
  workspace.pipes.giveBack(*std::exchange(cargo_->pipe, std::nullopt));
  workspace.takeBack(std::move(cargo_));
  if (!spliceRefused(taken.error)) return taken;
  engine_ = Engine::copy;
  return {.error = EINTR};  // again, in the other way
}

Moved Mover::spliced(int result, Workspace& workspace) {
  cargo_->splicing = false;
  const Moved given = noteSpliced(movedByPoller(result), workspace);
  if (cargo_->empty()) workspace.takeBack(std::move(cargo_));
  return given;
}

void Cargo::forgetReceived(std::size_t bytes) {
  for (; receivedFrom < received.size(); ++receivedFrom) {
    const std::size_t left = received[receivedFrom].bytes().size();
    if (bytes < left) return received[receivedFrom].dropFront(bytes);
    bytes -= left;
  }
  received.clear();
  receivedFrom = 0;
}

void Mover::keep() {
  if (cargo_ && !cargo_->inBuffer.empty()) {
    const auto bytes = std::exchange(cargo_->inBuffer, {});
    cargo_->held.assign(bytes.begin(), bytes.end());
  }
  if (!cargo_ || cargo_->receivedFrom == cargo_->received.size()) return;
  Cargo& cargo = *cargo_;
  cargo.held.erase(cargo.held.begin(), cargo.held.begin() + static_cast<std::ptrdiff_t>(cargo.heldFrom));
  cargo.heldFrom = 0;
  for (; cargo.receivedFrom < cargo.received.size(); ++cargo.receivedFrom) {
    const auto bytes = cargo.received[cargo.receivedFrom].bytes();
    cargo.held.insert(cargo.held.end(), bytes.begin(), bytes.end());
  }
  cargo.forgetReceived(0);
  if (cargo.held.size() >= mostHeld) slowDown();
}

Moved Mover::giveCopied(int to) {
  Cargo& cargo = *cargo_;
  const auto bytes =
      cargo.inBuffer.empty() ? std::span<const std::byte>(cargo.held).subspan(cargo.heldFrom) : cargo.inBuffer;
  const Moved result =
      moved(untilUninterrupted([&] { return send(to, bytes.data(), bytes.size(), MSG_NOSIGNAL); }), false);
  if (!cargo.inBuffer.empty()) {
    const auto rest = std::exchange(cargo.inBuffer, {}).subspan(result.bytes);
    cargo.held.assign(rest.begin(), rest.end());
    cargo.heldFrom = 0;
  } else {
    cargo.heldFrom += result.bytes;
  }
  if (cargo.heldFrom == cargo.held.size()) {
    cargo.held = {};
    cargo.heldFrom = 0;
  }
  return result;
}

bool Mover::emptyPipeIntoHeld(Workspace& workspace) {
  Cargo& cargo = *cargo_;
  cargo.held.resize(cargo.inPipe);
  for (std::size_t got = 0; got < cargo.inPipe;) {
    const ssize_t bytes =
        untilUninterrupted([&] { return read(cargo.pipe->out.get(), cargo.held.data() + got, cargo.inPipe - got); });
    if (bytes <= 0) return false;
    got += static_cast<std::size_t>(bytes);
  }
  cargo.inPipe = 0;
  workspace.pipes.giveBack(*std::exchange(cargo.pipe, std::nullopt));
  return true;
}

void Mover::drop(Workspace& workspace) {
  if (!cargo_) return;
  if (cargo_->splicing) workspace.poller.finishSplicing();
  if (cargo_->pipe) workspace.pipes.discard(*std::exchange(cargo_->pipe, std::nullopt));
  cargo_.reset();
}

}  // namespace tproxy::relay
