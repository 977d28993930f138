// Socket addresses: text <-> sockaddr, and what the kernel says of a socket's two ends.
#pragma once
#include <netinet/in.h>

#include <cstdint>
#include <string>

namespace tproxy::socket {

// An IPv4 or IPv6 address with its port. An IPv4-mapped IPv6 address is IPv4 from the moment it is made, so that the
// family of an Address is the family on the wire.
class Address {
 public:
  Address();  // 0.0.0.0 port 0
  // Takes `192.0.2.1`, `2001:db8::1`, `fe80::1%eth0` and `fe80::1%2`. Throws Error EINVAL on anything else, ENODEV for
  // an interface that the calling thread's network namespace does not have.
  Address(const std::string& text, std::uint16_t port);
  explicit Address(const sockaddr_storage& from);

  const sockaddr* data() const { return &any_; }
  socklen_t size() const { return family() == AF_INET ? sizeof v4_ : sizeof v6_; }
  sa_family_t family() const { return any_.sa_family; }
  std::uint16_t port() const { return ntohs(family() == AF_INET ? v4_.sin_port : v6_.sin6_port); }
  void setPort(std::uint16_t port);
  // Without the port. The scope of a link-local address is shown by name, asked of the namespace that `fd` lives in.
  std::string text(int fd = -1) const;

  // 0.0.0.0 or ::
  bool isAny() const;
  bool operator==(const Address& other) const;

 private:
  union {
    sockaddr any_;
    sockaddr_in v4_;
    sockaddr_in6 v6_;
  };
};

Address localAddress(int fd);  // getsockname
Address peerAddress(int fd);   // getpeername

// Where the client of an accepted socket meant to go.
struct OriginalDestination {
  Address address;
  bool fromConntrack;  // it was rewritten by REDIRECT or DNAT; else it is the socket's own address, as under TPROXY
};
// getsockname; getsockopt SO_ORIGINAL_DST.
OriginalDestination originalDestination(int fd);

// Whether the address belongs to this host, told by a plain bind to it.
bool isLocal(const Address& address);

}  // namespace tproxy::socket
