#include "relay/pipe_pool.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <fstream>

namespace tproxy::relay {

namespace {

// As much as an unprivileged process may ask for (fs.pipe-max-size). One splice moves at most one pipe full, so this
// size is the bytes per system call; larger ones were measured slower.
constexpr std::size_t wantedCapacity = std::size_t{1024} * 1024;
// Bounds the memory that slow receivers can pin: 64 MiB of pipes a thread. Further directions copy.
constexpr std::size_t limitPerThread = 64;
constexpr std::size_t keptIdle = 16;
constexpr ino_t initialUserNamespace = 0xEFFFFFFD;  // USER_NS_INIT_INO of linux/nsfs.h, in the headers since 6.18

// The kernel bounds the pipes of a user by fs.pipe-user-pages-soft unless it has one of two capabilities in the initial
// user namespace. Beyond that bound every new pipe of that user, also in other programs, has one or two pages.
bool boundPerUser() {
  struct stat space {};
  if (stat("/proc/self/ns/user", &space) < 0 || space.st_ino != initialUserNamespace) return true;
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3]{};
  if (syscall(SYS_capget, &header, sets) < 0) return true;
  return (sets[0].effective & (1u << CAP_SYS_RESOURCE | 1u << CAP_SYS_ADMIN)) == 0;
}

std::size_t allowedPipes() {
  std::size_t pages = 0;
  std::ifstream("/proc/sys/fs/pipe-user-pages-soft") >> pages;
  if (pages == 0 || !boundPerUser()) return limitPerThread;
  const std::size_t quarter = pages / 4 * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) / wantedCapacity;
  return std::clamp<std::size_t>(quarter, 1, limitPerThread);
}

}  // namespace

PipePool::PipePool() : limit_(allowedPipes()) {}

std::optional<Pipe> PipePool::borrow() {
  if (!idle_.empty()) {
    Pipe pipe = std::move(idle_.back());
    idle_.pop_back();
    return pipe;
  }
  if (open_ >= limit_) return std::nullopt;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) return std::nullopt;
  ++open_;
  Pipe pipe{UniqueFd(ends[0]), UniqueFd(ends[1]), 0};
  // Refused where the user's bound is reached: any size will do, so only what came of it counts.
  fcntl(pipe.in.get(), F_SETPIPE_SZ, static_cast<int>(wantedCapacity));
  pipe.capacity = static_cast<std::size_t>(std::max(fcntl(pipe.in.get(), F_GETPIPE_SZ), 1));
  return pipe;
}

void PipePool::giveBack(Pipe pipe) {
  if (idle_.size() < keptIdle)
    idle_.push_back(std::move(pipe));
  else
    discard(std::move(pipe));
}

void PipePool::discard(Pipe) { --open_; }

}  // namespace tproxy::relay
