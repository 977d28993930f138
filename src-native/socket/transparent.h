// TCP sockets as a transparent proxy needs them: listening and connecting with addresses that belong to somebody else.
// One function per socket option; each throws Error with the option's name.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>

#include "socket/address.h"
#include "unique_fd.h"

namespace tproxy::socket {

void setTransparent(int fd, sa_family_t family);  // IP_TRANSPARENT, and IPV6_TRANSPARENT on AF_INET6
void setReuseAddress(int fd);                     // SO_REUSEADDR
void setReusePort(int fd);                        // SO_REUSEPORT
void setV6Only(int fd, bool only);                // IPV6_V6ONLY
void setMark(int fd, std::uint32_t mark);
void setBindAddressNoPort(int fd);  // IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect, per 4-tuple
void setNoDelay(int fd);            // TCP_NODELAY
void setUrgentInline(int fd);       // SO_OOBINLINE
void setKeepAlive(int fd, std::int64_t milliseconds);    // SO_KEEPALIVE, TCP_KEEPIDLE and TCP_KEEPINTVL
void setUserTimeout(int fd, std::int64_t milliseconds);  // TCP_USER_TIMEOUT
void setNonBlocking(int fd);
// close() from now on sends RST and forgets what was not sent yet.
void setResetOnClose(int fd);
// The error the kernel holds for the socket, which it then forgets; 0 for none. SO_ERROR
int takeError(int fd);

struct ListenOptions {
  Address address;
  int backlog;
  bool transparent;
  bool v6Only = false;
  bool reusePort = false;
  std::optional<std::uint32_t> mark;
};
UniqueFd listen(const ListenOptions& options);
// Makes sure that a descriptor which was there when the process began is a listening TCP socket (else ENOTSOCK or
// EINVAL), and keeps it from programs that this one starts. Gives whether it is transparent.
bool inheritListener(int fd);

// Opens a socket and binds it (to nothing: with the mark only) for somebody who may not do so himself. Throws Error.
using Opener = std::function<UniqueFd(sa_family_t, const std::optional<Address>& from, std::optional<std::uint32_t>)>;

struct ConnectOptions {
  Address to;
  // Bound before the connect. With port 0 the port is chosen per 4-tuple.
  std::optional<Address> from;
  // When the port of `from` is not to be had, connect from a chosen one.
  bool portOptional = false;
  std::optional<std::uint32_t> mark;
  const Opener* opener = nullptr;

  bool operator==(const ConnectOptions&) const = default;
};
struct Connecting {
  UniqueFd fd;
  bool established;  // else: when the socket becomes writable, takeError() tells
  bool portKept;     // of `from`, when it has one
};
// A connect that does not block.
Connecting connect(const ConnectOptions& options);

}  // namespace tproxy::socket
