#include "guard/process.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <iterator>
#include <string>
#include <utility>

#include "socket/error.h"

namespace tproxy::guard {

namespace {

constexpr int workTimeoutMs = 1000;  // a guard that takes longer (somebody has stopped it) is not waited for

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

// A program that is run keeps only the ambient capabilities: without this the guard of a Node that has CAP_NET_ADMIN as
// a file capability would have none. Of the calling thread alone, and only while this lives. Where it fails the
// capability is not there, or needs no help.
class AmbientNetAdmin {
 public:
  AmbientNetAdmin() {
    if (syscall(SYS_capget, &header_, before_) != 0) return;
    __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    std::copy(std::begin(before_), std::end(before_), sets);
    sets[CAP_TO_INDEX(CAP_NET_ADMIN)].inheritable |= CAP_TO_MASK(CAP_NET_ADMIN);
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_ADMIN, 0, 0) != 0) return;  // it is there already
    changed_ = syscall(SYS_capset, &header_, sets) == 0;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0);
  }
  ~AmbientNetAdmin() {
    if (!changed_) return;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_LOWER, CAP_NET_ADMIN, 0, 0);
    syscall(SYS_capset, &header_, before_);
  }
  AmbientNetAdmin(const AmbientNetAdmin&) = delete;
  AmbientNetAdmin& operator=(const AmbientNetAdmin&) = delete;

 private:
  __user_cap_header_struct header_{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct before_[_LINUX_CAPABILITY_U32S_3]{};
  bool changed_ = false;
};

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

pid_t spawn(int standardInput, int standardOutput) {
  Actions actions;
  check(posix_spawn_file_actions_adddup2(&actions.value, standardInput, STDIN_FILENO), "posix_spawn");
  check(posix_spawn_file_actions_adddup2(&actions.value, standardOutput, STDOUT_FILENO), "posix_spawn");
  // Not ours: who reads our standard error to its end must not wait for the guard.
  check(posix_spawn_file_actions_addopen(&actions.value, STDERR_FILENO, "/dev/null", O_WRONLY, 0), "posix_spawn");
  Attributes attributes;
  sigset_t all;
  sigfillset(&all);
  check(posix_spawnattr_setsigmask(&attributes.value, &all), "posix_spawn");
  check(posix_spawnattr_setflags(&attributes.value, POSIX_SPAWN_SETSIGMASK), "posix_spawn");

  const std::string path = executable();
  std::string name = "linux-tproxy-guard";
  std::string parent = std::to_string(getpid());
  char* arguments[] = {name.data(), parent.data(), nullptr};
  char* environment[] = {nullptr};
  pid_t pid = -1;
  check(posix_spawn(&pid, path.c_str(), &actions.value, &attributes.value, arguments, environment), "spawn " + path);
  return pid;
}

}  // namespace

void Process::start(int netlinkSocket) {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  if (std::exchange(started_, true)) return;
  try {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw socket::Error(errno, "pipe");
    const UniqueFd standardInput(ends[0]);
    life_.reset(ends[1]);
    const AmbientNetAdmin ambient;
    pid_ = spawn(standardInput.get(), netlinkSocket);
    pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  } catch (...) {
    failure_ = std::current_exception();
    throw;
  }
}

Process::~Process() {
  if (pid_ < 0) return;
  life_.reset();
  pollfd ended{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  while (poll(&ended, 1, workTimeoutMs) < 0 && errno == EINTR) {
  }
  reap();
}

void Process::arm(std::span<const std::uint8_t> requests) {
  const std::lock_guard lock(mutex_);
  if (requests.size() > capacity) throw socket::Error(EMSGSIZE, "guard");
  // Until all of it is there the guard could only do a part: nothing is installed yet.
  while (!requests.empty()) {
    const ssize_t size = write(life_.get(), requests.data(), requests.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw socket::Error(errno, "write to the guard");
    requests = requests.subspan(static_cast<std::size_t>(size));
  }
}

void Process::disarm() {
  const std::lock_guard lock(mutex_);
  started_ = true;  // nor will it be
  if (pid_ < 0) return;
  reap();
  life_.reset();
}

// By signal and not by a word: so it also ends when somebody has stopped it.
void Process::reap() {
  // Not by its number where that can be helped: it is another process's when somebody else has waited for the guard.
  if (pidfd_)
    syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  else
    kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

}  // namespace tproxy::guard
