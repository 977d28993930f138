// An io_uring and nothing else: its two queues, submitting, waiting, and a ring of buffers for the kernel to receive into.
// Named as in liburing. For one thread: the one that makes it.
#pragma once
#include <linux/io_uring.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "unique_fd.h"

namespace tproxy::relay {

// Memory shared with the kernel.
class Mapping {
 public:
  Mapping() = default;
  Mapping(std::size_t size, int fd, std::uint64_t offset);  // of `fd`, or of no file when that is -1
  Mapping(Mapping&& other) noexcept : at_(std::exchange(other.at_, nullptr)), size_(other.size_) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Mapping();
  template <typename T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(at_) + offset);
  }

 private:
  void* at_ = nullptr;
  std::size_t size_ = 0;
};

class Ring {
 public:
  // Completions are made when this thread enters the kernel for them, never in between.
  static constexpr unsigned deferred = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  // Throws socket::Error `io_uring_setup` (EPERM, ENOSYS, EINVAL: not here; ENOMEM, EMFILE: not now).
  Ring(unsigned entries, unsigned completions, unsigned flags);

  // The next free entry, zeroed. When there is none, those that wait are submitted first.
  io_uring_sqe& getSqe();
  void submit() { enter(0, 0, nullptr); }
  // Without waiting: what has happened becomes visible to forEachCqe().
  void submitAndGetEvents() { enter(0, IORING_ENTER_GETEVENTS, nullptr); }
  // Until something has happened, at most so many milliseconds; -1 = without end.
  void submitAndWait(int timeoutMs);

  bool hasCqe() const;
  // All that was asked was submitted, and all that has come of it by now was seen.
  bool settled() const;
  // `see` is called for at most `most` completions, which are then gone.
  template <typename See>
  void forEachCqe(unsigned most, See see) {
    unsigned head = *cqHead_;
    const unsigned tail = __atomic_load_n(cqTail_, __ATOMIC_ACQUIRE);
    for (; head != tail && most > 0; ++head, --most) see(cqes_[head & cqMask_]);
    __atomic_store_n(cqHead_, head, __ATOMIC_RELEASE);
  }

  int fd() const { return fd_.get(); }
  // Of the threads that do what would block.
  void limitWorkers(unsigned most);

 private:
  void enter(unsigned atLeast, unsigned flags, const __kernel_timespec* timeout);

  UniqueFd fd_;
  Mapping queues_;
  Mapping entries_;
  unsigned* sqHead_;
  unsigned* sqTail_;
  unsigned* sqFlags_;
  unsigned sqMask_;
  unsigned sqSize_;
  unsigned sqNext_ = 0;  // the tail, before the kernel is told
  io_uring_sqe* sqes_;
  unsigned* cqHead_;
  unsigned* cqTail_;
  unsigned cqMask_;
  io_uring_cqe* cqes_;
};

// Buffers of one size that the kernel picks from as bytes come in, so that a socket on which nothing comes holds none.
class ReceiveBuffers {
 public:
  static constexpr std::uint16_t group = 0;
  static constexpr std::size_t size = 4096;

  ReceiveBuffers(const Ring& ring, std::uint16_t count);  // a power of two
  std::byte* at(std::uint16_t id) const { return memory_.at<std::byte>(id * size); }
  void giveBack(std::uint16_t id);

 private:
  Mapping memory_;
  Mapping ring_;
  std::uint16_t mask_;
  std::uint16_t tail_ = 0;
};

// Bytes in one of the buffers, which goes back to the kernel with this.
class Received {
 public:
  Received(ReceiveBuffers& home, std::uint16_t id, std::size_t bytes)
      : home_(&home), id_(id), bytes_(home.at(id), bytes) {}
  Received(Received&& other) noexcept
      : home_(std::exchange(other.home_, nullptr)), id_(other.id_), bytes_(other.bytes_) {}
  Received& operator=(Received&& other) noexcept {
    std::swap(home_, other.home_);
    std::swap(id_, other.id_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Received() {
    if (home_) home_->giveBack(id_);
  }
  std::span<const std::byte> bytes() const { return bytes_; }
  void dropFront(std::size_t bytes) { bytes_ = bytes_.subspan(bytes); }

 private:
  ReceiveBuffers* home_;
  std::uint16_t id_;
  std::span<const std::byte> bytes_;
};

}  // namespace tproxy::relay
