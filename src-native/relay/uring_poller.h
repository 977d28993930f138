// Readiness and received bytes from an io_uring. Short messages are received by a multishot request into the ring's
// buffers, so that they cost no system call and no event; for bulk, which is spliced, a one-shot poll is armed only where
// reading or writing said EAGAIN. While nothing else is armed on a socket, a poll of its end is.
#pragma once
#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

#include "relay/poller.h"
#include "relay/ring.h"

namespace tproxy::relay {

// Whether to look again for a moment before sleeping: worth it only while what is waited for comes soon, as the mean of the
// last waits tells, and while nobody wants the CPU for long: who has been given it keeps it for a whole slice, where one who
// sleeps would be woken in between.
class SpinGate {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr Clock::duration limit = std::chrono::microseconds(60);  // of one moment
  // A yield that took so long let somebody else run.
  static constexpr Clock::duration givenAway = std::chrono::microseconds(25);
  bool open(Clock::time_point now) const { return mean_ < soon && now >= shutUntil_; }
  // `given`: for so long of it others had the CPU. Looking again burnt none then.
  void waited(Clock::duration duration, Clock::duration given, Clock::time_point now) {
    mean_ += (std::min(duration - given, longest) - mean_) / weight;
    if (given >= slice) shutUntil_ = now + aWhile;
  }

 private:
  // As long as it takes where both sides of an exchange have to be woken.
  static constexpr Clock::duration soon = std::chrono::microseconds(120);
  // One pause is not to count for many waits.
  static constexpr Clock::duration longest = std::chrono::microseconds(500);
  static constexpr int weight = 4;
  // Of a scheduler that does not end it early; no side of an exchange of short messages takes so long.
  static constexpr Clock::duration slice = std::chrono::milliseconds(1);
  static constexpr Clock::duration aWhile = std::chrono::milliseconds(100);
  Clock::duration mean_ = longest;
  Clock::time_point shutUntil_;
};

class UringPoller : public Poller {
 public:
  // Throws socket::Error where the kernel, a container or a sysctl does not let us have a ring (of 6.1 or newer).
  UringPoller();
  ~UringPoller() override;
  void addWake(int fd) override;
  void add(int, Watch&) override {}
  void want(int fd, Watch& watch, const Wanted& wanted) override;
  void remove(int, Watch& watch) override { forget(watch); }
  bool send(int fd, const Watch& watch, Received& bytes) override;
  bool splice(int in, int out, std::size_t bytes, Watch& watch, bool toSocket) override;
  void finishSplicing() override;
  void close(UniqueFd fd, Watch& watch) override;
  void finishClosing() override { ring_.submitAndGetEvents(); }
  std::span<Ready> wait(Waiting waiting) override;

 private:
  void poll(int fd, std::uint64_t token, unsigned kind, unsigned events, bool multishot);
  void armPoll(int fd, Watch& watch, unsigned kind, unsigned events, bool multishot = false);
  void armReceive(int fd, Watch& watch);
  void cancel(std::uint64_t userData);
  void forget(Watch& watch);
  void finishSending();
  void waitForCqes(Waiting waiting);
  void translate(const io_uring_cqe& cqe);
  bool hasCqe() const { return ring_.hasCqe() || (splices_ && splices_->hasCqe()); }

  Ring ring_;
  ReceiveBuffers buffers_;
  SpinGate gate_;
  int wake_ = -1;
  bool wakeArmed_ = false;
  std::size_t inFlight_ = 0;  // requests that a completion without IORING_CQE_F_MORE will end
  std::vector<Ready> ready_;
  // What is being sent: the request gives no completion unless it fails, which it does, if at all, when it is submitted.
  struct Send {
    std::uint64_t token;
    Received bytes;
  };
  std::vector<Send> sends_;
  // IORING_OP_SPLICE is always done by worker threads, which end a request at once only in a ring that does not defer.
  std::optional<Ring> splices_;
  bool splicesArmed_ = false;  // the one ring polls the other
  std::size_t splicing_ = 0;
  std::vector<Ready> early_;  // for the next wait
};

}  // namespace tproxy::relay
