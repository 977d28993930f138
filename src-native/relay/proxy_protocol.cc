#include "relay/proxy_protocol.h"

#include <string_view>

namespace tproxy::relay {

namespace {

std::string networkOrder(std::size_t number) { return {static_cast<char>(number >> 8), static_cast<char>(number)}; }

// The address alone, in network order.
std::string_view bytesOf(const socket::Address& address) {
  if (address.family() == AF_INET) {
    const in_addr& v4 = reinterpret_cast<const sockaddr_in*>(address.data())->sin_addr;
    return {reinterpret_cast<const char*>(&v4), sizeof v4};
  }
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6*>(address.data())->sin6_addr;
  return {reinterpret_cast<const char*>(&v6), sizeof v6};
}

// Without the interface of a link-local address, which means nothing to the server.
std::string textOf(const socket::Address& address) {
  const std::string text = address.text();
  return text.substr(0, text.find('%'));
}

}  // namespace

std::string proxyHeader(int version, const socket::Address& source, const socket::Address& destination) {
  const bool v4 = source.family() == AF_INET;
  if (version == 1)
    return std::string(v4 ? "PROXY TCP4 " : "PROXY TCP6 ") + textOf(source) + ' ' + textOf(destination) + ' ' +
           std::to_string(source.port()) + ' ' + std::to_string(destination.port()) + "\r\n";

  constexpr std::string_view signature("\r\n\r\n\0\r\nQUIT\n", 12);
  constexpr std::string_view tcp4("\x21\x11");  // version 2, command PROXY; family and protocol
  constexpr std::string_view tcp6("\x21\x21");
  std::string addresses(bytesOf(source));
  addresses.append(bytesOf(destination));
  addresses += networkOrder(source.port()) + networkOrder(destination.port());
  std::string header(signature);
  header.append(v4 ? tcp4 : tcp6);
  return header + networkOrder(addresses.size()) + addresses;
}

}  // namespace tproxy::relay
