#include "socket/address.h"

#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <charconv>
#include <cstring>

#include "socket/error.h"
#include "unique_fd.h"

namespace tproxy::socket {

namespace {

// The index of an interface of the calling thread's namespace, given by name or by number.
std::uint32_t scopeOf(const std::string& text, const std::string& zone) {
  ifreq request{};
  zone.copy(request.ifr_name, sizeof request.ifr_name - 1);
  const UniqueFd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (ioctl(any.get(), SIOCGIFINDEX, &request) == 0) return static_cast<std::uint32_t>(request.ifr_ifindex);
  std::uint32_t index = 0;
  const char* end = zone.data() + zone.size();
  const auto [last, failure] = std::from_chars(zone.data(), end, index);
  if (failure != std::errc{} || last != end || index == 0) throw Error(ENODEV, "ioctl SIOCGIFINDEX", text);
  return index;
}

}  // namespace

Address::Address() : v6_{} { any_.sa_family = AF_INET; }

Address::Address(const std::string& text, std::uint16_t port) : v6_{} {
  if (inet_pton(AF_INET, text.c_str(), &v4_.sin_addr) == 1) {
    any_.sa_family = AF_INET;
    setPort(port);
    return;
  }
  v6_ = {};
  const std::size_t percent = text.find('%');
  sockaddr_storage storage{};
  auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  if (inet_pton(AF_INET6, text.substr(0, percent).c_str(), &v6.sin6_addr) != 1) throw Error(EINVAL, "inet_pton", text);
  if (percent != std::string::npos) v6.sin6_scope_id = scopeOf(text, text.substr(percent + 1));
  *this = Address(storage);
}

Address::Address(const sockaddr_storage& from) : v6_{} {
  if (from.ss_family == AF_INET) {
    std::memcpy(&v4_, &from, sizeof v4_);
    return;
  }
  if (from.ss_family != AF_INET6) throw Error(EAFNOSUPPORT, "getsockname");
  sockaddr_in6 v6;
  std::memcpy(&v6, &from, sizeof v6);
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    any_.sa_family = AF_INET;
    v4_.sin_port = v6.sin6_port;
    std::memcpy(&v4_.sin_addr, &v6.sin6_addr.s6_addr[12], sizeof v4_.sin_addr);
  } else {
    v6_ = v6;
  }
}

void Address::setPort(std::uint16_t port) { (family() == AF_INET ? v4_.sin_port : v6_.sin6_port) = htons(port); }

std::string Address::text(int fd) const {
  char buffer[INET6_ADDRSTRLEN];
  if (family() == AF_INET) return inet_ntop(AF_INET, &v4_.sin_addr, buffer, sizeof buffer);
  std::string result = inet_ntop(AF_INET6, &v6_.sin6_addr, buffer, sizeof buffer);
  if (v6_.sin6_scope_id == 0) return result;
  ifreq request{};
  request.ifr_ifindex = static_cast<int>(v6_.sin6_scope_id);
  const bool named = fd >= 0 && ioctl(fd, SIOCGIFNAME, &request) == 0;
  return result + "%" + (named ? request.ifr_name : std::to_string(v6_.sin6_scope_id));
}

bool Address::isAny() const {
  return family() == AF_INET ? v4_.sin_addr.s_addr == INADDR_ANY : IN6_IS_ADDR_UNSPECIFIED(&v6_.sin6_addr);
}

bool Address::operator==(const Address& other) const {
  if (family() != other.family() || port() != other.port()) return false;
  if (family() == AF_INET) return v4_.sin_addr.s_addr == other.v4_.sin_addr.s_addr;
  return IN6_ARE_ADDR_EQUAL(&v6_.sin6_addr, &other.v6_.sin6_addr) && v6_.sin6_scope_id == other.v6_.sin6_scope_id;
}

Address localAddress(int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size) < 0) throw Error(errno, "getsockname");
  return Address(storage);
}

Address peerAddress(int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &size) < 0) throw Error(errno, "getpeername");
  return Address(storage);
}

OriginalDestination originalDestination(int fd) {
  const Address local = localAddress(fd);
  // The family on the wire decides which table knows the connection, not the family of the socket.
  const bool v4 = local.family() == AF_INET;
  sockaddr_storage storage{};
  socklen_t size = v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  // Where conntrack is not there, or has no word of the connection, nobody has rewritten it.
  if (getsockopt(fd, v4 ? SOL_IP : SOL_IPV6, v4 ? SO_ORIGINAL_DST : IP6T_SO_ORIGINAL_DST, &storage, &size) < 0)
    return {local, false};
  const Address known(storage);
  if (known == local) return {local, false};
  // The client itself: of a connection whose first packet was not tracked (`notrack`), conntrack takes the answer for the
  // beginning. A client that is gone already has no name any more.
  sockaddr_storage peer{};
  socklen_t peerSize = sizeof peer;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peerSize) == 0 && known == Address(peer))
    return {local, false};
  return {known, true};
}

bool isLocal(const Address& address) {
  Address anyPort = address;
  anyPort.setPort(0);
  const UniqueFd probe(::socket(address.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return probe && ::bind(probe.get(), anyPort.data(), anyPort.size()) == 0;
}

}  // namespace tproxy::socket
