#include "socket/netns.h"

#include <fcntl.h>
#include <sched.h>

#include <exception>
#include <system_error>
#include <thread>

#include "unique_fd.h"

namespace tproxy {

namespace {

void enter(const std::string& path) {
  const UniqueFd netns(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!netns) throw std::system_error(errno, std::generic_category(), "open " + path);
  if (::setns(netns.get(), CLONE_NEWNET) != 0) throw std::system_error(errno, std::generic_category(), "setns " + path);
}

}  // namespace

void inNetns(const std::string& path, const std::function<void()>& fn) {
  if (path.empty()) return fn();
  std::exception_ptr failure;
  std::thread([&] {
    try {
      enter(path);
      fn();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace tproxy
