// Starting the broker (serve.h), and asking it.
#pragma once
#include <mutex>
#include <optional>
#include <string>

#include "child/process.h"
#include "socket/address.h"
#include "unique_fd.h"

namespace tproxy::broker {

// A broker that runs, in the network namespace at the path (empty: this thread's). It has the capabilities of this
// process at this moment that sockets need, whatever becomes of this process's. Destroyed, it ends.
class Process {
 public:
  explicit Process(const std::string& netns);
  ~Process();

  // A socket bound to `from`, without it one that has but the mark. Waits for the answer; from any thread. Throws
  // socket::Error.
  UniqueFd open(sa_family_t family, const std::optional<socket::Address>& from, std::optional<std::uint32_t> mark);

 private:
  std::mutex mutex_;
  UniqueFd channel_;
  std::optional<child::Process> child_;
};

}  // namespace tproxy::broker
