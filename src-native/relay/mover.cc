#include "relay/mover.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace tproxy::relay {

namespace {

// No SPLICE_F_MORE: it would cork the last bytes of every exchange. SPLICE_F_NONBLOCK is for the pipe, O_NONBLOCK for
// the socket; both are needed.
constexpr unsigned spliceFlags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK;

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

}  // namespace

Moved Mover::take(int from, Workspace& workspace) {
  if (engine_ == Engine::copy || !(pipe_ = workspace.pipes.borrow())) return takeCopying(from, workspace);
  Moved result = moved(
      untilUninterrupted([&] { return splice(from, nullptr, pipe_->in.get(), nullptr, pipe_->capacity, spliceFlags); }),
      true);
  inPipe_ = result.bytes;
  if (inPipe_ > 0) {
    // A pipe is full when its slots (one a page) are used up, and a slot holds at least one byte: with fewer bytes than
    // slots it was the socket that had no more.
    static const auto pageSize = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    result.drained = inPipe_ < pipe_->capacity / pageSize;
    return result;
  }
  workspace.pipes.giveBack(*std::exchange(pipe_, std::nullopt));
  if (!spliceRefused(result.error)) return result;
  engine_ = Engine::copy;
  return takeCopying(from, workspace);
}

Moved Mover::takeCopying(int from, Workspace& workspace) {
  auto& buffer = workspace.buffer;
  Moved result = moved(untilUninterrupted([&] { return recv(from, buffer.data(), buffer.size(), 0); }), false);
  inBuffer_ = std::span(buffer).first(result.bytes);
  result.drained = result.bytes > 0 && result.bytes < buffer.size();
  return result;
}

Moved Mover::give(int to, Workspace& workspace) {
  if (inPipe_ == 0) return giveCopied(to);
  // The exact length: asking for more would make the kernel wait for it before it sends the last part.
  const Moved result = moved(
      untilUninterrupted([&] { return splice(pipe_->out.get(), nullptr, to, nullptr, inPipe_, spliceFlags); }), true);
  if (spliceRefused(result.error) && emptyPipeIntoHeld(workspace)) {
    engine_ = Engine::copy;
    return giveCopied(to);
  }
  if (result.end()) return {.error = EAGAIN};
  inPipe_ -= result.bytes;
  if (inPipe_ == 0) workspace.pipes.giveBack(*std::exchange(pipe_, std::nullopt));
  return result;
}

Moved Mover::giveCopied(int to) {
  const auto bytes = inBuffer_.empty() ? std::span<const std::byte>(held_).subspan(heldFrom_) : inBuffer_;
  const Moved result =
      moved(untilUninterrupted([&] { return send(to, bytes.data(), bytes.size(), MSG_NOSIGNAL); }), false);
  if (!inBuffer_.empty()) {
    const auto rest = std::exchange(inBuffer_, {}).subspan(result.bytes);
    held_.assign(rest.begin(), rest.end());
    heldFrom_ = 0;
  } else {
    heldFrom_ += result.bytes;
  }
  if (heldFrom_ == held_.size()) {
    held_ = {};  // gives the memory back: an idle connection has none
    heldFrom_ = 0;
  }
  return result;
}

bool Mover::emptyPipeIntoHeld(Workspace& workspace) {
  held_.resize(inPipe_);
  for (std::size_t got = 0; got < inPipe_;) {
    const ssize_t bytes = untilUninterrupted([&] { return read(pipe_->out.get(), held_.data() + got, inPipe_ - got); });
    if (bytes <= 0) return false;
    got += static_cast<std::size_t>(bytes);
  }
  inPipe_ = 0;
  workspace.pipes.giveBack(*std::exchange(pipe_, std::nullopt));
  return true;
}

void Mover::drop(Workspace& workspace) {
  if (pipe_) workspace.pipes.discard(*std::exchange(pipe_, std::nullopt));
  inPipe_ = 0;
  inBuffer_ = {};
  held_ = {};
  heldFrom_ = 0;
}

}  // namespace tproxy::relay
