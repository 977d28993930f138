#include "broker/process.h"

#include <linux/capability.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstring>

#include "broker/request.h"
#include "socket/error.h"

namespace tproxy::broker {

namespace {

constexpr int capabilities[] = {CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE};
constexpr int patienceMs = 2000;  // with a broker that somebody has stopped

const char* nameOf(Call call) {
  switch (call) {
    case Call::none:
    case Call::request:
      break;
    case Call::socket:
      return "socket";
    case Call::mark:
      return "setsockopt SO_MARK";
    case Call::reuseAddress:
      return "setsockopt SO_REUSEADDR";
    case Call::transparent:
      return "setsockopt IP_TRANSPARENT";
    case Call::bindNoPort:
      return "setsockopt IP_BIND_ADDRESS_NO_PORT";
    case Call::bind:
      return "bind";
  }
  return "broker";
}

Request requestFor(sa_family_t family, const std::optional<socket::Address>& from, std::optional<std::uint32_t> mark) {
  Request request{};
  request.family = static_cast<std::uint8_t>(family);
  request.mark = mark.value_or(0);
  if (!from) return request;
  request.port = from->port();
  if (family == AF_INET) {
    std::memcpy(request.address, &reinterpret_cast<const sockaddr_in*>(from->data())->sin_addr, sizeof(in_addr));
  } else {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(from->data());
    std::memcpy(request.address, &v6->sin6_addr, sizeof v6->sin6_addr);
    request.scope = v6->sin6_scope_id;
  }
  return request;
}

// Nothing, with errno, when no answer comes.
std::optional<Reply> receive(int channel, UniqueFd& fd) {
  Reply reply{};
  iovec data{.iov_base = &reply, .iov_len = sizeof reply};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t size = -1;
  do {
    size = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
  } while (size < 0 && errno == EINTR);
  if (size < 0) return {};
  if (const cmsghdr* rights = CMSG_FIRSTHDR(&message); rights && rights->cmsg_type == SCM_RIGHTS) {
    int received = -1;
    std::memcpy(&received, CMSG_DATA(rights), sizeof received);
    fd.reset(received);
  }
  if (size == sizeof reply && (reply.error != 0 || fd)) return reply;
  // The descriptor did not fit into this process's table, or the broker is gone.
  errno = size == sizeof reply ? EMFILE : EPIPE;
  return {};
}

}  // namespace

Process::Process(const std::string& netns) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) throw socket::Error(errno, "socketpair");
  const UniqueFd theirs(ends[0]);
  channel_.reset(ends[1]);
  const timeval patience{.tv_sec = patienceMs / 1000, .tv_usec = 0};
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO})
    setsockopt(channel_.get(), SOL_SOCKET, option, &patience, sizeof patience);
  child_.emplace(child::Options{.role = "linux-tproxy-broker",
                                .standardInput = theirs.get(),
                                .standardOutput = theirs.get(),
                                .capabilities = capabilities,
                                .netns = netns});
}

Process::~Process() {
  channel_.reset();
  child_->waitForEnd(patienceMs);
}

UniqueFd Process::open(sa_family_t family, const std::optional<socket::Address>& from,
                       std::optional<std::uint32_t> mark) {
  const Request request = requestFor(family, from, mark);
  const std::lock_guard lock(mutex_);
  UniqueFd fd;
  std::optional<Reply> reply;
  if (send(channel_.get(), &request, sizeof request, MSG_NOSIGNAL) == sizeof request)
    reply = receive(channel_.get(), fd);
  if (!reply) {
    const int error = errno;
    // An answer that comes late would be taken for that to the next request.
    if (error != EMFILE) channel_.reset();
    throw socket::Error(error == EAGAIN ? ETIMEDOUT : error, "broker");
  }
  if (reply->error == 0) return fd;
  if (from) throw socket::Error(reply->error, nameOf(reply->call), from->text(), from->port());
  throw socket::Error(reply->error, nameOf(reply->call));
}

}  // namespace tproxy::broker
