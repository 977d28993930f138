#include "child/process.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <exception>
#include <thread>
#include <utility>

#include "socket/error.h"
#include "socket/netns.h"

namespace tproxy::child {

namespace {

void check(int errnum, const std::string& call) {
  if (errnum != 0) throw socket::Error(errnum, call);
}

std::string executable() {
  static const char here = 0;
  Dl_info object{};
  if (dladdr(&here, &object) == 0) throw socket::Error(ENOENT, "dladdr");
  std::string path = object.dli_fname;
  const std::string suffix = ".node";
  if (path.ends_with(suffix)) path.resize(path.size() - suffix.size());
  return path + ".guard";
}

// A program that is run keeps only the ambient capabilities: without this the child of a Node that has CAP_NET_ADMIN as
// a file capability would have none. Of the calling thread alone. Where it fails the capability is not there, or needs
// no help.
void makeAmbient(int capability) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
  if (syscall(SYS_capget, &header, sets) != 0) return;
  sets[CAP_TO_INDEX(capability)].inheritable |= CAP_TO_MASK(capability);
  if (syscall(SYS_capset, &header, sets) != 0) return;
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
}

struct Actions {
  Actions() { check(posix_spawn_file_actions_init(&value), "posix_spawn_file_actions_init"); }
  Actions(const Actions&) = delete;
  Actions& operator=(const Actions&) = delete;
  ~Actions() { posix_spawn_file_actions_destroy(&value); }
  posix_spawn_file_actions_t value{};
};
struct Attributes {
  Attributes() { check(posix_spawnattr_init(&value), "posix_spawnattr_init"); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
  ~Attributes() { posix_spawnattr_destroy(&value); }
  posix_spawnattr_t value{};
};

pid_t spawn(const Options& options) {
  Actions actions;
  check(posix_spawn_file_actions_adddup2(&actions.value, options.standardInput, STDIN_FILENO), "posix_spawn");
  check(posix_spawn_file_actions_adddup2(&actions.value, options.standardOutput, STDOUT_FILENO), "posix_spawn");
  // Not ours: who reads our standard error to its end must not wait for the child.
  if (options.standardError < 0)
    check(posix_spawn_file_actions_addopen(&actions.value, STDERR_FILENO, "/dev/null", O_WRONLY, 0), "posix_spawn");
  else
    check(posix_spawn_file_actions_adddup2(&actions.value, options.standardError, STDERR_FILENO), "posix_spawn");
  if (options.memory >= 0)
    check(posix_spawn_file_actions_adddup2(&actions.value, options.memory, STDERR_FILENO + 1), "posix_spawn");
  Attributes attributes;
  sigset_t all;
  sigfillset(&all);
  check(posix_spawnattr_setsigmask(&attributes.value, &all), "posix_spawn");
  check(posix_spawnattr_setflags(&attributes.value, POSIX_SPAWN_SETSIGMASK), "posix_spawn");

  const std::string path = executable();
  std::string name = options.role;
  std::string parent = std::to_string(getpid());
  char* arguments[] = {name.data(), parent.data(), nullptr};
  char* environment[] = {nullptr};
  pid_t pid = -1;
  check(posix_spawn(&pid, path.c_str(), &actions.value, &attributes.value, arguments, environment), "spawn " + path);
  return pid;
}

}  // namespace

Process::Process(const Options& options) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      if (!options.netns.empty()) enterNetns(options.netns);
      for (const int capability : options.capabilities) makeAmbient(capability);
      pid_ = spawn(options);
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
  pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
}

void Process::waitForEnd(int timeoutMs) const {
  pollfd ended{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  while (poll(&ended, 1, timeoutMs) < 0 && errno == EINTR) {
  }
}

void Process::end() {
  const pid_t pid = std::exchange(pid_, -1);
  if (pid < 0) return;
  // Not by its number where that can be helped: it is another process's when somebody else has waited for the child.
  const auto killed = pidfd_ ? syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) : kill(pid, SIGKILL);
  // A process that has given up its privileges may not kill what it started before.
  const int options = killed < 0 && errno == EPERM ? WNOHANG : 0;
  while (waitpid(pid, nullptr, options) < 0 && errno == EINTR) {
  }
}

}  // namespace tproxy::child
