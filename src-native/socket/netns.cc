#include "socket/netns.h"

#include <fcntl.h>
#include <sched.h>

#include <exception>
#include <thread>

#include "socket/error.h"

namespace tproxy {

UniqueFd openNetns(const std::string& path) {
  UniqueFd netns(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!netns) throw socket::Error(errno, "open " + path);
  return netns;
}

void enterNetns(const std::string& path) {
  const UniqueFd netns = openNetns(path);
  if (setns(netns.get(), CLONE_NEWNET) < 0) throw socket::Error(errno, "setns " + path);
}

void inNetns(const std::string& path, const std::function<void()>& fn) {
  if (path.empty()) return fn();
  std::exception_ptr failure;
  std::thread([&] {
    try {
      enterNetns(path);
      fn();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace tproxy
