#include "relay/ring.h"

#include <linux/time_types.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "socket/error.h"

namespace tproxy::relay {

// ---- memory ---------------------------------------------------------------------------------------------------------

Mapping::Mapping(std::size_t size, int fd, std::uint64_t offset) : size_(size) {
  // Shared in both cases: a process that is forked off must not make the kernel write into a copy.
  const int flags = MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : MAP_POPULATE);
  at_ = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, static_cast<off_t>(offset));
  if (at_ != MAP_FAILED) return;
  at_ = nullptr;
  throw socket::Error(errno, "mmap");
}

Mapping::~Mapping() {
  if (at_) munmap(at_, size_);
}

// ---- the ring -------------------------------------------------------------------------------------------------------

Ring::Ring(unsigned entries, unsigned completions, unsigned flags) {
  io_uring_params params{.cq_entries = completions,
                         .flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL};
  fd_ = UniqueFd(static_cast<int>(syscall(SYS_io_uring_setup, entries, &params)));
  if (!fd_) throw socket::Error(errno, "io_uring_setup");

  // Both queues are in one mapping since 5.4.
  const std::size_t sqBytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  const std::size_t cqBytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  queues_ = Mapping(std::max(sqBytes, cqBytes), fd(), IORING_OFF_SQ_RING);
  entries_ = Mapping(params.sq_entries * sizeof(io_uring_sqe), fd(), IORING_OFF_SQES);

  sqHead_ = queues_.at<unsigned>(params.sq_off.head);
  sqTail_ = queues_.at<unsigned>(params.sq_off.tail);
  sqFlags_ = queues_.at<unsigned>(params.sq_off.flags);
  sqMask_ = *queues_.at<unsigned>(params.sq_off.ring_mask);
  sqSize_ = params.sq_entries;
  sqes_ = entries_.at<io_uring_sqe>(0);
  cqHead_ = queues_.at<unsigned>(params.cq_off.head);
  cqTail_ = queues_.at<unsigned>(params.cq_off.tail);
  cqMask_ = *queues_.at<unsigned>(params.cq_off.ring_mask);
  cqes_ = queues_.at<io_uring_cqe>(params.cq_off.cqes);
  // Entries are used in their order.
  for (unsigned i = 0; i < sqSize_; ++i) queues_.at<unsigned>(params.sq_off.array)[i] = i;
}

io_uring_sqe& Ring::getSqe() {
  while (sqNext_ - __atomic_load_n(sqHead_, __ATOMIC_ACQUIRE) == sqSize_) submit();
  io_uring_sqe& sqe = sqes_[sqNext_++ & sqMask_];
  std::memset(&sqe, 0, sizeof sqe);
  return sqe;
}

bool Ring::hasCqe() const { return *cqHead_ != __atomic_load_n(cqTail_, __ATOMIC_ACQUIRE); }

bool Ring::settled() const {
  return sqNext_ == __atomic_load_n(sqHead_, __ATOMIC_ACQUIRE) && !hasCqe() &&
         (__atomic_load_n(sqFlags_, __ATOMIC_RELAXED) & IORING_SQ_CQ_OVERFLOW) == 0;
}

void Ring::limitWorkers(unsigned most) {
  unsigned limits[2] = {most, most};  // for files, and for all else
  if (syscall(SYS_io_uring_register, fd(), IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2) < 0)
    throw socket::Error(errno, "io_uring_register");
}

void Ring::submitAndWait(int timeoutMs) {
  const __kernel_timespec timeout{.tv_sec = timeoutMs / 1000, .tv_nsec = timeoutMs % 1000 * 1'000'000LL};
  enter(1, IORING_ENTER_GETEVENTS, timeoutMs < 0 ? nullptr : &timeout);
}

void Ring::enter(unsigned atLeast, unsigned flags, const __kernel_timespec* timeout) {
  __atomic_store_n(sqTail_, sqNext_, __ATOMIC_RELEASE);
  const unsigned count = sqNext_ - __atomic_load_n(sqHead_, __ATOMIC_ACQUIRE);
  if (count == 0 && flags == 0) return;
  const io_uring_getevents_arg argument{.ts = reinterpret_cast<std::uint64_t>(timeout)};
  const long result = timeout ? syscall(SYS_io_uring_enter, fd(), count, atLeast, flags | IORING_ENTER_EXT_ARG,
                                        &argument, sizeof argument)
                              : syscall(SYS_io_uring_enter, fd(), count, atLeast, flags, nullptr, 0);
  // EBUSY and EAGAIN: completions must be taken first, or memory is short; what was not submitted is next time.
  if (result < 0 && errno != ETIME && errno != EINTR && errno != EBUSY && errno != EAGAIN)
    throw socket::Error(errno, "io_uring_enter");
}

// ---- buffers --------------------------------------------------------------------------------------------------------

ReceiveBuffers::ReceiveBuffers(const Ring& ring, std::uint16_t count)
    : memory_(count * size, -1, 0),
      ring_(count * sizeof(io_uring_buf), -1, 0),
      mask_(static_cast<std::uint16_t>(count - 1)) {
  io_uring_buf_reg registration{
      .ring_addr = reinterpret_cast<std::uint64_t>(ring_.at<void>(0)), .ring_entries = count, .bgid = group};
  if (syscall(SYS_io_uring_register, ring.fd(), IORING_REGISTER_PBUF_RING, &registration, 1) < 0)
    throw socket::Error(errno, "io_uring_register");
  for (std::uint16_t id = 0; id < count; ++id) giveBack(id);
}

void ReceiveBuffers::giveBack(std::uint16_t id) {
  // The tail lies in the first entry, in a field that buffers do not use. (In C++ the header's io_uring_buf_ring puts
  // its array elsewhere than in C.)
  auto* entries = ring_.at<io_uring_buf>(0);
  io_uring_buf& entry = entries[tail_ & mask_];
  entry.addr = reinterpret_cast<std::uint64_t>(at(id));
  entry.len = size;
  entry.bid = id;
  __atomic_store_n(&entries[0].resv, ++tail_, __ATOMIC_RELEASE);
}

}  // namespace tproxy::relay
