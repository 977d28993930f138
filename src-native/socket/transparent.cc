#include "socket/transparent.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <limits>
#include <string>

#include "socket/error.h"

namespace tproxy::socket {

namespace {

template <typename Value>
void setOption(int fd, int level, int option, const Value& value, const char* name) {
  if (setsockopt(fd, level, option, &value, sizeof value) < 0) throw Error(errno, std::string("setsockopt ") + name);
}

UniqueFd open(int family) {
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd) throw Error(errno, "socket");
  return fd;
}

Error failed(const char* call, const Address& address) { return {errno, call, address.text(), address.port()}; }

// Binds to an address that may be foreign. An address of our own needs no privilege, so a refused IP_TRANSPARENT is an
// error only where the address turns out not to be ours: then it is the cause.
void bindForeign(int fd, const Address& from) {
  std::optional<Error> refused;
  try {
    setTransparent(fd, from.family());
  } catch (const Error& failure) {
    refused = failure;
  }
  if (from.port() == 0) setBindAddressNoPort(fd);
  if (::bind(fd, from.data(), from.size()) == 0) return;
  if (errno == EADDRNOTAVAIL && refused) throw Error(refused->errnum(), refused->syscall, from.text(), from.port());
  throw failed("bind", from);
}

UniqueFd openFrom(const ConnectOptions& options, const std::optional<Address>& from) {
  try {
    UniqueFd fd = open(options.to.family());
    if (options.mark) setMark(fd.get(), *options.mark);
    // On every socket, so that a port can be bound exactly beside sockets that were given it for other destinations.
    setReuseAddress(fd.get());
    if (from) bindForeign(fd.get(), *from);
    return fd;
  } catch (const Error& failure) {
    const bool forbidden = failure.errnum() == EPERM || failure.errnum() == EACCES;
    if (!forbidden || !options.opener) throw;
  }
  return (*options.opener)(options.to.family(), from, options.mark);
}

Connecting connectFrom(const ConnectOptions& options, const std::optional<Address>& from) {
  UniqueFd fd = openFrom(options, from);
  setUrgentInline(fd.get());
  const bool established = ::connect(fd.get(), options.to.data(), options.to.size()) == 0;
  if (!established && errno != EINPROGRESS) throw failed("connect", options.to);
  return {std::move(fd), established, from && from->port() != 0};
}

}  // namespace

void setTransparent(int fd, sa_family_t family) {
  setOption(fd, SOL_IP, IP_TRANSPARENT, 1, "IP_TRANSPARENT");
  if (family == AF_INET6) setOption(fd, SOL_IPV6, IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT");
}
void setReuseAddress(int fd) { setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"); }
void setReusePort(int fd) { setOption(fd, SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT"); }
void setV6Only(int fd, bool only) { setOption(fd, SOL_IPV6, IPV6_V6ONLY, int{only}, "IPV6_V6ONLY"); }
void setMark(int fd, std::uint32_t mark) { setOption(fd, SOL_SOCKET, SO_MARK, mark, "SO_MARK"); }
void setBindAddressNoPort(int fd) { setOption(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT"); }
void setUrgentInline(int fd) { setOption(fd, SOL_SOCKET, SO_OOBINLINE, 1, "SO_OOBINLINE"); }

void setNoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // a socket that is not TCP never delays
}

void setKeepAlive(int fd, std::int64_t milliseconds) {
  const auto seconds = static_cast<int>(std::clamp<std::int64_t>(milliseconds / 1000, 1, 32767));  // the kernel's limit
  setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE");
  setOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds, "TCP_KEEPIDLE");
  setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds, "TCP_KEEPINTVL");
}

void setUserTimeout(int fd, std::int64_t milliseconds) {
  const std::int64_t most = std::numeric_limits<int>::max();
  setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(std::min(milliseconds, most)), "TCP_USER_TIMEOUT");
}

void setNonBlocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) throw Error(errno, "fcntl");
}

void setResetOnClose(int fd) {
  const linger hard{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);  // a socket that is gone already needs no reset
}

int takeError(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) return errno;
  return error;
}

UniqueFd listen(const ListenOptions& options) {
  UniqueFd fd = open(options.address.family());
  setReuseAddress(fd.get());
  // What is accepted inherits it. Whoever reads by JavaScript has no other way to an urgent byte.
  setUrgentInline(fd.get());
  if (options.reusePort) setReusePort(fd.get());
  if (options.address.family() == AF_INET6) setV6Only(fd.get(), options.v6Only);
  if (options.transparent) setTransparent(fd.get(), options.address.family());
  if (options.mark) setMark(fd.get(), *options.mark);
  if (::bind(fd.get(), options.address.data(), options.address.size()) < 0) throw failed("bind", options.address);
  if (::listen(fd.get(), options.backlog) < 0) throw failed("listen", options.address);
  return fd;
}

bool inheritListener(int fd) {
  if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) throw Error(errno, "fcntl F_SETFD");
  const auto get = [fd](int level, int option, const char* name) {
    int value = 0;
    socklen_t size = sizeof value;
    if (getsockopt(fd, level, option, &value, &size) < 0) throw Error(errno, std::string("getsockopt ") + name);
    return value;
  };
  if (get(SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL") != IPPROTO_TCP || !get(SOL_SOCKET, SO_ACCEPTCONN, "SO_ACCEPTCONN"))
    throw Error(EINVAL, "getsockopt SO_ACCEPTCONN");
  return get(SOL_IP, IP_TRANSPARENT, "IP_TRANSPARENT") != 0;
}

Connecting connect(const ConnectOptions& options) {
  if (options.from && options.from->family() != options.to.family())
    throw Error(EAFNOSUPPORT, "bind", options.from->text(), options.from->port());
  try {
    return connectFrom(options, options.from);
  } catch (const Error& failure) {
    const bool portTaken =
        failure.errnum() == EADDRINUSE || failure.errnum() == EADDRNOTAVAIL || failure.errnum() == EACCES;
    if (!portTaken || !options.portOptional || !options.from || options.from->port() == 0) throw;
  }
  Address anyPort = *options.from;
  anyPort.setPort(0);
  return connectFrom(options, anyPort);
}

}  // namespace tproxy::socket
