#include "guard/process.h"

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
#include <string>
#include <thread>

#include "socket/error.h"

namespace tproxy::guard {

namespace {

constexpr int nftablesDescriptor = STDERR_FILENO + 1;  // see main.cc
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
// a file capability would have none. Of the calling thread alone. Where it fails the capability is not there, or needs
// no help.
void makeNetAdminAmbient() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
  if (syscall(SYS_capget, &header, sets) != 0) return;
  sets[CAP_TO_INDEX(CAP_NET_ADMIN)].inheritable |= CAP_TO_MASK(CAP_NET_ADMIN);
  if (syscall(SYS_capset, &header, sets) != 0) return;
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0);
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

pid_t spawn(int standardInput, int routeSocket, int nftablesSocket) {
  Actions actions;
  check(posix_spawn_file_actions_adddup2(&actions.value, standardInput, STDIN_FILENO), "posix_spawn");
  check(posix_spawn_file_actions_adddup2(&actions.value, routeSocket, STDOUT_FILENO), "posix_spawn");
  // Not ours: who reads our standard error to its end must not wait for the guard.
  check(posix_spawn_file_actions_addopen(&actions.value, STDERR_FILENO, "/dev/null", O_WRONLY, 0), "posix_spawn");
  if (nftablesSocket >= 0)
    check(posix_spawn_file_actions_adddup2(&actions.value, nftablesSocket, nftablesDescriptor), "posix_spawn");
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

Process::Process(int routeSocket, int nftablesSocket, const Requests& requests, Grace grace) {
  const auto size = [](std::span<const std::uint8_t> bytes) { return static_cast<std::uint32_t>(bytes.size()); };
  const Header header{.grace = grace,
                      .question = size(requests.question),
                      .takeover = size(requests.takeover),
                      .routing = size(requests.routing),
                      .removal = size(requests.removal)};
  if (sizeof header + requests.question.size() + requests.takeover.size() + requests.routing.size() +
          requests.removal.size() >
      capacity)
    throw socket::Error(EMSGSIZE, "guard");
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw socket::Error(errno, "pipe");
  const UniqueFd standardInput(ends[0]);
  life_.reset(ends[1]);

  std::exception_ptr failure;
  std::thread([&] {
    try {
      makeNetAdminAmbient();
      pid_ = spawn(standardInput.get(), routeSocket, nftablesSocket);
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);

  pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  // Until all of it is there the guard could only do a part: nothing is installed yet.
  write({reinterpret_cast<const std::uint8_t*>(&header), sizeof header});
  for (const auto& bytes : {requests.question, requests.takeover, requests.routing, requests.removal}) write(bytes);
}

void Process::write(std::span<const std::uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t size = ::write(life_.get(), bytes.data(), bytes.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) {
      const int errnum = errno;
      disarm();
      throw socket::Error(errnum, "write to the guard");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(size));
  }
}

Process::~Process() {
  if (!life_) return;
  life_.reset();
  waitUntilDone();
}

void Process::waitUntilDone() {
  pollfd ended{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  while (poll(&ended, 1, workTimeoutMs) < 0 && errno == EINTR) {
  }
  reap();
}

void Process::release() {
  if (!life_) return;
  const std::uint8_t word = 0;
  write({&word, 1});
  life_.reset();
  waitUntilDone();
}

// By signal and not by a word: so it also ends when somebody has stopped it.
void Process::disarm() {
  if (!life_) return;
  reap();
  life_.reset();
}

void Process::reap() {
  // Not by its number where that can be helped: it is another process's when somebody else has waited for the guard.
  if (pidfd_)
    syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  else
    kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace tproxy::guard
