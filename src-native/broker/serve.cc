// The broker: a process that keeps the privileges which another has given up, for one thing only: sockets with foreign
// addresses. It is asked by one datagram of fixed size on its standard input, a socket pair whose other end belongs to
// its parent alone; it opens no file, speaks to nobody else, and ends when its parent does. Links with libc only.
#include "broker/serve.h"

#include <grp.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "broker/request.h"

namespace tproxy::broker {

namespace {

constexpr uid_t nobody = 65534;

// What it needs and no more: IP_TRANSPARENT and SO_MARK, and ports below 1024.
void keepOnlyNetworking() {
  constexpr int kept[] = {CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE};
  // Where there is no such user (a user namespace with one only), or no right to become him, it stays who it is.
  prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
  if (setgroups(0, nullptr) != 0 || setresgid(nobody, nobody, nobody) != 0 || setresuid(nobody, nobody, nobody) != 0) {
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
  if (syscall(SYS_capget, &header, sets) != 0) return;
  __user_cap_data_struct wanted[_LINUX_CAPABILITY_U32S_3] = {};
  for (const int capability : kept) {
    const __u32 bit = sets[CAP_TO_INDEX(capability)].permitted & CAP_TO_MASK(capability);
    wanted[CAP_TO_INDEX(capability)].permitted |= bit;
    wanted[CAP_TO_INDEX(capability)].effective |= bit;
  }
  syscall(SYS_capset, &header, wanted);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

bool isValid(const Request& request) {
  constexpr std::uint8_t zeros[16] = {};
  const bool v4 = request.family == AF_INET;
  if (!v4 && request.family != AF_INET6) return false;
  if (std::memcmp(request.reserved, zeros, sizeof request.reserved) != 0) return false;
  if (v4 && (request.scope != 0 || std::memcmp(request.address + 4, zeros, 12) != 0)) return false;
  const bool multicast = v4 ? request.address[0] >= 224 : request.address[0] == 0xff;
  const bool any = std::memcmp(request.address, zeros, sizeof zeros) == 0;
  return !multicast && !(any && (request.port != 0 || request.scope != 0));
}

bool set(int fd, int level, int option, int value) { return setsockopt(fd, level, option, &value, sizeof value) == 0; }

// The call that failed, with errno.
Call prepare(int fd, const Request& request) {
  const bool v4 = request.family == AF_INET;
  if (request.mark != 0 && !set(fd, SOL_SOCKET, SO_MARK, static_cast<int>(request.mark))) return Call::mark;
  if (!set(fd, SOL_SOCKET, SO_REUSEADDR, 1)) return Call::reuseAddress;
  constexpr std::uint8_t zeros[16] = {};
  if (std::memcmp(request.address, zeros, sizeof zeros) == 0) return Call::none;
  if (!set(fd, SOL_IP, IP_TRANSPARENT, 1)) return Call::transparent;
  if (!v4 && !set(fd, SOL_IPV6, IPV6_TRANSPARENT, 1)) return Call::transparent;
  if (request.port == 0 && !set(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)) return Call::bindNoPort;
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_port = htons(request.port);
  std::memcpy(&in.sin_addr, request.address, sizeof in.sin_addr);
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(request.port);
  in6.sin6_scope_id = request.scope;
  std::memcpy(&in6.sin6_addr, request.address, sizeof in6.sin6_addr);
  const auto* address = v4 ? reinterpret_cast<const sockaddr*>(&in) : reinterpret_cast<const sockaddr*>(&in6);
  return bind(fd, address, v4 ? sizeof in : sizeof in6) == 0 ? Call::none : Call::bind;
}

void answer(Reply reply, int fd) {
  iovec data{&reply, sizeof reply};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (reply.error == 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
  }
  sendmsg(STDIN_FILENO, &message, MSG_NOSIGNAL);
}

void carryOut(const Request& request) {
  const int fd = socket(request.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  if (fd < 0) return answer({errno, Call::socket}, fd);
  const Call failed = prepare(fd, request);
  answer({failed == Call::none ? 0 : errno, failed}, fd);
  close(fd);
}

}  // namespace

int serve() {
  keepOnlyNetworking();
  for (;;) {
    Request request{};
    iovec data{&request, sizeof request};
    // No room for descriptors: the kernel closes what somebody may send along.
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    const ssize_t size = recvmsg(STDIN_FILENO, &message, 0);
    if (size == 0) return 0;  // the parent is gone
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return 1;
    if (size != sizeof request || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || !isValid(request))
      answer({EINVAL, Call::request}, -1);
    else
      carryOut(request);
  }
}

}  // namespace tproxy::broker
