#include "relay/uring_poller.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "socket/error.h"

namespace tproxy::relay {

namespace {

constexpr unsigned entries = 512;
constexpr unsigned completions = 8 * entries;
constexpr std::uint16_t bufferCount = 256;
constexpr unsigned cqesPerTurn = 1024;

// What a request is for: the low bits of its user data, above them the token; and a bit of Watch::armed.
constexpr unsigned kindBits = 4;
enum Kind : unsigned { receive, input, output, hangUp, edges, sending, taking, giving, other, splices };
std::uint64_t userDataOf(std::uint64_t token, unsigned kind) { return token << kindBits | kind; }
std::uint8_t bitOf(unsigned kind) { return static_cast<std::uint8_t>(1u << kind); }
static_assert(Watch::receive == 1u << receive);
bool isArmed(const Watch& watch, unsigned kind) { return (watch.armed & bitOf(kind)) != 0; }

}  // namespace

UringPoller::UringPoller() : ring_(entries, completions, Ring::deferred), buffers_(ring_, bufferCount) {}

// What was closed is, and nothing else is held open either: a request holds its socket, and closing a ring ends its requests
// some time later.
UringPoller::~UringPoller() {
  try {
    io_uring_sqe& sqe = ring_.getSqe();
    sqe.opcode = IORING_OP_ASYNC_CANCEL;
    sqe.cancel_flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL;
    sqe.user_data = other;
    constexpr int patienceMs = 100;
    int tries = 0;
    do {
      ring_.submitAndWait(1);
      ready_.clear();
      ring_.forEachCqe(completions, [this](const io_uring_cqe& cqe) { translate(cqe); });
    } while (inFlight_ > 0 && ++tries < patienceMs);
  } catch (...) {  // then they end a little later
  }
}

// ---- arming ---------------------------------------------------------------------------------------------------------

void UringPoller::addWake(int fd) { wake_ = fd; }

void UringPoller::want(int fd, Watch& watch, const Wanted& wanted) {
  using Input = Wanted::Input;
  if (isArmed(watch, edges) && wanted.input != Input::edges) cancel(userDataOf(watch.token, edges));
  if (isArmed(watch, receive) && wanted.input != Input::receive && !watch.stopping) {
    cancel(userDataOf(watch.token, receive));
    watch.stopping = true;  // what comes until it has stopped is received still
  }
  switch (wanted.input) {
    case Input::nothing:
      break;
    case Input::edges:
      if (!isArmed(watch, edges)) armPoll(fd, watch, edges, EPOLLIN, true);
      break;
    case Input::poll:
      if (!isArmed(watch, input) && !isArmed(watch, receive)) armPoll(fd, watch, input, EPOLLIN | EPOLLPRI);
      break;
    case Input::receive:
      if (!isArmed(watch, receive)) armReceive(fd, watch);
      break;
  }
  // Every poll tells of errors and of the peer's end too, as a state: once it has ended, only changes are of use.
  if (wanted.output && !isArmed(watch, output)) armPoll(fd, watch, output, EPOLLOUT, wanted.ended);
  if (watch.armed == 0 && !watch.hungUp) armPoll(fd, watch, hangUp, 0, wanted.ended);
}

void UringPoller::forget(Watch& watch) {
  for (unsigned kind = 0; kind < sending; ++kind)  // sending does not wait
    if (isArmed(watch, kind)) cancel(userDataOf(watch.token, kind));
  watch.armed = 0;
}

bool UringPoller::send(int fd, const Watch& watch, Received& bytes) {
  io_uring_sqe& sqe = ring_.getSqe();
  sqe.opcode = IORING_OP_SEND;
  sqe.flags = IOSQE_CQE_SKIP_SUCCESS;
  sqe.fd = fd;
  sqe.addr = reinterpret_cast<std::uint64_t>(bytes.bytes().data());
  sqe.len = static_cast<std::uint32_t>(bytes.bytes().size());
  sqe.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_WAITALL;  // the last: to have sent a part is no success
  sqe.user_data = userDataOf(watch.token, sending);
  sends_.push_back({watch.token, std::move(bytes)});
  return true;
}

bool UringPoller::splice(int in, int out, std::size_t bytes, Watch& watch, bool toSocket) {
  if (!splices_) {
    try {
      splices_.emplace(entries, completions, 0u);
      splices_->limitWorkers(std::max(2u, std::thread::hardware_concurrency()));
    } catch (const socket::Error&) {
      splices_.reset();
      return false;
    }
  }
  io_uring_sqe& sqe = splices_->getSqe();
  sqe.opcode = IORING_OP_SPLICE;
  sqe.fd = out;
  sqe.off = ~std::uint64_t{0};
  sqe.splice_fd_in = in;
  sqe.splice_off_in = ~std::uint64_t{0};
  sqe.len = static_cast<std::uint32_t>(bytes);
  sqe.splice_flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK;
  sqe.user_data = userDataOf(watch.token, toSocket ? giving : taking);
  watch.armed |= bitOf(toSocket ? giving : taking);
  ++splicing_;
  return true;
}

void UringPoller::finishSplicing() {
  std::swap(ready_, early_);  // somebody may be reading ready_
  while (splicing_ > 0) {
    splices_->submitAndWait(-1);
    splices_->forEachCqe(completions, [this](const io_uring_cqe& cqe) { translate(cqe); });
  }
  std::swap(ready_, early_);
}

void UringPoller::close(UniqueFd fd, Watch& watch) {
  forget(watch);
  if (!fd) return;
  io_uring_sqe& sqe = ring_.getSqe();
  sqe.opcode = IORING_OP_CLOSE;
  sqe.flags = IOSQE_CQE_SKIP_SUCCESS;
  sqe.fd = fd.release();
  sqe.user_data = other;
}

void UringPoller::poll(int fd, std::uint64_t token, unsigned kind, unsigned events, bool multishot) {
  io_uring_sqe& sqe = ring_.getSqe();
  sqe.opcode = IORING_OP_POLL_ADD;
  sqe.fd = fd;
  sqe.poll32_events = events;
  sqe.len = multishot ? IORING_POLL_ADD_MULTI : 0;
  sqe.user_data = userDataOf(token, kind);
  ++inFlight_;
}

void UringPoller::armPoll(int fd, Watch& watch, unsigned kind, unsigned events, bool multishot) {
  poll(fd, watch.token, kind, events, multishot);
  watch.armed |= bitOf(kind);
}

void UringPoller::armReceive(int fd, Watch& watch) {
  io_uring_sqe& sqe = ring_.getSqe();
  sqe.opcode = IORING_OP_RECV;
  sqe.flags = IOSQE_BUFFER_SELECT;
  sqe.ioprio = IORING_RECV_MULTISHOT;
  sqe.fd = fd;
  sqe.buf_group = ReceiveBuffers::group;
  sqe.user_data = userDataOf(watch.token, receive);
  watch.armed |= bitOf(receive);
  watch.stopping = false;
  ++inFlight_;
}

// By user data, never by descriptor: that number may mean another socket by now.
void UringPoller::cancel(std::uint64_t userData) {
  io_uring_sqe& sqe = ring_.getSqe();
  sqe.opcode = IORING_OP_ASYNC_CANCEL;
  sqe.flags = IOSQE_CQE_SKIP_SUCCESS;
  sqe.addr = userData;
  sqe.user_data = other;
}

// ---- waiting --------------------------------------------------------------------------------------------------------

std::span<Ready> UringPoller::wait(Waiting waiting) {
  if (!wakeArmed_) {
    poll(wake_, 0, edges, EPOLLIN, true);
    wakeArmed_ = true;
  }
  ready_.clear();
  if (!early_.empty()) std::swap(ready_, early_);
  if (splicing_ > 0) {
    if (!std::exchange(splicesArmed_, true)) poll(splices_->fd(), 0, splices, EPOLLIN, false);
    splices_->submit();
  }
  // While it sleeps the buffers of what was sent are not there to receive into.
  if (!ready_.empty() || sends_.size() > bufferCount / 2) waiting.timeoutMs = 0;
  waitForCqes(waiting);
  ring_.forEachCqe(cqesPerTurn, [this](const io_uring_cqe& cqe) { translate(cqe); });
  finishSending();
  if (splices_) splices_->forEachCqe(completions, [this](const io_uring_cqe& cqe) { translate(cqe); });
  return ready_;
}

// Whatever else is given to those sockets comes after this.
void UringPoller::finishSending() {
  while (!sends_.empty() && !ring_.settled()) {
    if (!ring_.hasCqe()) ring_.submitAndGetEvents();
    ring_.forEachCqe(cqesPerTurn, [this](const io_uring_cqe& cqe) { translate(cqe); });
  }
  sends_.clear();
}

// Sleeping and being woken costs more than what is waited for here: the other side of an exchange, or the peers' turn on
// this CPU, which they get. For bulk one look is always worth it: where peers wait for the CPU there is more to move once
// they had it, and where none does it is over at once.
void UringPoller::waitForCqes(Waiting waiting) {
  if (waiting.timeoutMs == 0 || hasCqe()) return ring_.submitAndGetEvents();
  using Clock = SpinGate::Clock;
  const auto asked = Clock::now();
  const auto most = gate_.open(asked) ? SpinGate::limit : Clock::duration(waiting.bulk ? 1 : 0);
  if (most > most.zero()) ring_.submitAndGetEvents();  // to send takes a while, in which nobody waits
  const auto start = Clock::now();
  Clock::duration given{0};
  auto now = start;
  while (!hasCqe() && now - start < most && given == given.zero()) {
    sched_yield();
    ring_.submitAndGetEvents();
    const auto looked = std::exchange(now, Clock::now());
    if (now - looked >= SpinGate::givenAway) given = now - looked;
  }
  if (!hasCqe()) ring_.submitAndWait(waiting.timeoutMs);
  now = Clock::now();
  gate_.waited(now - start, given, now);
}

void UringPoller::translate(const io_uring_cqe& cqe) {
  const auto kind = static_cast<unsigned>(cqe.user_data & ((1u << kindBits) - 1));
  if (kind == other) return;  // a cancellation that came too late
  const bool more = (cqe.flags & IORING_CQE_F_MORE) != 0;
  if (kind == taking || kind == giving)
    --splicing_;
  else if (!more && kind != sending)
    --inFlight_;
  if (kind == splices) {
    splicesArmed_ = false;
    return;
  }
  Ready& ready = ready_.emplace_back();
  ready.token = cqe.user_data >> kindBits;
  if (!more) ready.disarmed = bitOf(kind);
  if (ready.token == 0) wakeArmed_ = more;

  if (kind == sending) {
    const auto send =
        std::find_if(sends_.begin(), sends_.end(), [&](const Send& one) { return one.token == ready.token; });
    send->bytes.dropFront(static_cast<std::size_t>(std::max(cqe.res, 0)));
    ready.unsent = Unsent{std::move(send->bytes), cqe.res < 0 ? -cqe.res : EAGAIN};
    return;
  }
  if (kind == taking || kind == giving) {
    (kind == taking ? ready.taken : ready.spliced) = cqe.res;
    return;
  }
  if (kind == receive) {
    if (cqe.flags & IORING_CQE_F_BUFFER)
      ready.received.emplace(buffers_, static_cast<std::uint16_t>(cqe.flags >> IORING_CQE_BUFFER_SHIFT),
                             static_cast<std::size_t>(cqe.res > 0 ? cqe.res : 0));
    if (cqe.res > 0 || cqe.res == -ENOBUFS) return;
    if (cqe.res == 0)
      ready.atEnd = true;
    else if (cqe.res == -ECANCELED)
      ready.readable = true;  // nobody knows
    else
      ready.error = -cqe.res;
    return;
  }
  if (cqe.res == -ECANCELED) return;
  const auto events = static_cast<std::uint32_t>(cqe.res);
  ready.failed = cqe.res < 0 || (events & (EPOLLERR | EPOLLHUP)) != 0;
  ready.readable = (events & EPOLLIN) != 0;
  ready.writable = (events & EPOLLOUT) != 0;
  ready.ended = (events & EPOLLRDHUP) != 0;
  ready.urgent = (events & EPOLLPRI) != 0;
}

}  // namespace tproxy::relay
