#include "rtnetlink/address_text.h"

#include <charconv>

namespace tproxy::rtnetlink {

std::string formatIp(ByteView address) {
  char text[INET6_ADDRSTRLEN];
  return inet_ntop(address.size() == sizeof(in_addr) ? AF_INET : AF_INET6, address.data(), text, sizeof text);
}

std::string formatPrefix(const Prefix& prefix) {
  if (!prefix.address || prefix.length == 0) return "default";
  return formatIp(*prefix.address) + "/" + std::to_string(prefix.length);
}

Bytes parseIp(const std::string& text) {
  const bool v6 = text.find(':') != std::string::npos;
  Bytes address(v6 ? sizeof(in6_addr) : sizeof(in_addr));
  if (inet_pton(v6 ? AF_INET6 : AF_INET, text.c_str(), address.data()) != 1)
    throw std::invalid_argument("not an IP address: " + text);
  return address;
}

Prefix parsePrefix(const std::string& text) {
  if (text == "default") return {};
  const size_t slash = text.find('/');
  Prefix prefix{.address = parseIp(text.substr(0, slash))};
  const size_t bits = prefix.address->size() * 8;
  if (slash == std::string::npos) {
    prefix.length = static_cast<uint8_t>(bits);
    return prefix;
  }
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + slash + 1, end, prefix.length);
  if (error != std::errc() || stop != end || prefix.length > bits) throw std::invalid_argument("not a prefix: " + text);
  return prefix;
}

}  // namespace tproxy::rtnetlink
