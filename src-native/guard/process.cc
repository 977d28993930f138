#include "guard/process.h"

#include <fcntl.h>
#include <linux/capability.h>

#include <cerrno>

#include "socket/error.h"

namespace tproxy::guard {

namespace {

constexpr int workTimeoutMs = 1000;  // a guard that takes longer (somebody has stopped it) is not waited for
constexpr int capabilities[] = {CAP_NET_ADMIN};

}  // namespace

Process::Process(int netlinkSocket, std::span<const std::uint8_t> requests) {
  if (requests.size() > capacity) throw socket::Error(EMSGSIZE, "guard");
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw socket::Error(errno, "pipe");
  const UniqueFd standardInput(ends[0]);
  life_.reset(ends[1]);
  child_.emplace(child::Options{.role = "linux-tproxy-guard",
                                .standardInput = standardInput.get(),
                                .standardOutput = netlinkSocket,
                                .capabilities = capabilities,
                                .netns = {}});
  // Until all of it is there the guard could only do a part: nothing is installed yet.
  while (!requests.empty()) {
    const ssize_t size = write(life_.get(), requests.data(), requests.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) {
      const int errnum = errno;
      disarm();
      throw socket::Error(errnum, "write to the guard");
    }
    requests = requests.subspan(static_cast<std::size_t>(size));
  }
}

void Process::work() {
  if (!life_) return;
  life_.reset();
  child_->waitForEnd(workTimeoutMs);
  child_->end();
}

// By signal and not by a word: so it also ends when somebody has stopped it.
void Process::disarm() {
  if (!life_) return;
  child_->end();
  life_.reset();
}

}  // namespace tproxy::guard
