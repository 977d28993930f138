// Starting and ending the executable that lies beside the addon and has its name (`x.node`, `x.guard`): a small process
// for what Node's cannot do, in one of two roles (guard/main.cc).
#pragma once
#include <sys/types.h>

#include <span>
#include <string>

#include "unique_fd.h"

namespace tproxy::child {

struct Options {
  std::string role;  // the name that `ps` shows
  int standardInput;
  int standardOutput;
  int standardError = -1;             // -1: /dev/null
  int memory = -1;                    // its descriptor 3; -1: none
  std::span<const int> capabilities;  // of this process's, those that it has too
  std::string netns;                  // the path of its network namespace; empty: this thread's
};

class Process {
 public:
  // All signals are blocked in it: what ends this process must not end it. Throws socket::Error.
  explicit Process(const Options& options);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() { end(); }

  // It becomes readable when the child has ended.
  int pidfd() const { return pidfd_.get(); }
  void waitForEnd(int timeoutMs) const;
  // Kills it, unless it has ended.
  void end();

 private:
  pid_t pid_ = -1;
  UniqueFd pidfd_;
};

}  // namespace tproxy::child
