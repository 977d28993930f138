#include "relay/mover.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

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
  return streaming_ && engine_ == Engine::splice ? takeSplicing(from, workspace) : takeCopying(from, workspace);
}

Moved Mover::takeSplicing(int from, Workspace& workspace) {
  if (!(pipe_ = workspace.pipes.borrow())) return takeCopying(from, workspace);
  const std::size_t room = std::min(pipe_->capacity, workspace.bytesPerTurn());
  Moved result = moved(
      untilUninterrupted([&] { return splice(from, nullptr, pipe_->in.get(), nullptr, room, spliceFlags); }), true);
  inPipe_ = result.bytes;
  if (inPipe_ > 0) {
    // A pipe is full when its slots (one a page) are used up, and a slot holds at least one byte: with fewer bytes than
    // slots it was the socket that had no more.
    static const auto pageSize = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    result.drained = inPipe_ < pipe_->capacity / pageSize;
    noteRead(inPipe_, room);
    return result;
  }
  workspace.pipes.giveBack(*std::exchange(pipe_, std::nullopt));
  if (!spliceRefused(result.error)) return result;
  engine_ = Engine::copy;
  return takeCopying(from, workspace);
}

Moved Mover::takeCopying(int from, Workspace& workspace) {
  const auto room = std::span(workspace.buffer).first(streaming_ ? workspace.buffer.size() : shortRead);
  Moved result = moved(untilUninterrupted([&] { return recv(from, room.data(), room.size(), 0); }), false);
  inBuffer_ = room.first(result.bytes);
  result.drained = result.bytes > 0 && result.bytes < room.size();
  if (!streaming_) workspace.shortAt = workspace.turn;
  if (result.bytes > 0) noteRead(result.bytes, room.size());
  return result;
}

void Mover::receive(Received received) {
  noteRead(received.bytes().size(), ReceiveBuffers::size);
  received_.push_back(std::move(received));
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

Moved Mover::give(int to, bool last, Workspace& workspace) {
  if (inPipe_ == 0)
    return heldFrom_ == held_.size() && inBuffer_.empty() ? giveReceived(to, last, workspace) : giveCopied(to);
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

Moved Mover::giveReceived(int to, bool last, Workspace& workspace) {
  workspace.shortAt = workspace.turn;
  constexpr std::size_t most = 64;
  std::array<iovec, most> parts;
  const std::size_t count = std::min(most, received_.size() - receivedFrom_);
  std::size_t wanted = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto bytes = received_[receivedFrom_ + i].bytes().subspan(i == 0 ? receivedOffset_ : 0);
    parts[i] = {.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
    wanted += bytes.size();
  }
  const bool all = receivedFrom_ + count == received_.size();
  const int flags = MSG_NOSIGNAL | (last && all ? MSG_MORE : 0);
  const msghdr message{.msg_iov = parts.data(), .msg_iovlen = count};
  const Moved result =
      moved(untilUninterrupted([&] {
              return count == 1 ? send(to, parts[0].iov_base, parts[0].iov_len, flags) : sendmsg(to, &message, flags);
            }),
            false);
  // The receiver is slower than the sender: read only as it takes it.
  if (result.bytes < wanted) stream(true);
  std::size_t gone = result.bytes;
  while (receivedFrom_ < received_.size() && gone >= received_[receivedFrom_].bytes().size() - receivedOffset_) {
    gone -= received_[receivedFrom_].bytes().size() - receivedOffset_;
    receivedOffset_ = 0;
    ++receivedFrom_;
  }
  receivedOffset_ += gone;
  if (receivedFrom_ == received_.size()) forgetReceived();
  return result;
}

void Mover::keep() {
  if (receivedFrom_ == received_.size()) return;
  held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(heldFrom_));
  heldFrom_ = 0;
  for (; receivedFrom_ < received_.size(); ++receivedFrom_, receivedOffset_ = 0) {
    const auto bytes = received_[receivedFrom_].bytes().subspan(receivedOffset_);
    held_.insert(held_.end(), bytes.begin(), bytes.end());
  }
  forgetReceived();
}

void Mover::forgetReceived() {
  received_.clear();
  receivedFrom_ = 0;
  receivedOffset_ = 0;
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
  forgetReceived();
}

}  // namespace tproxy::relay
