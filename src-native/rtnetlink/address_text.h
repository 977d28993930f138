// IP addresses and prefixes as text and as the bytes that attributes hold. What describe functions of rtnetlink use
// beside netlink/describe.h.
#pragma once
#include <arpa/inet.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "netlink/describe.h"

namespace tproxy::rtnetlink {

using netlink::Bytes;
using netlink::ByteView;
using netlink::Is;
using netlink::Named;
using netlink::Word;

inline constexpr Word families[] = {{"ipv4", AF_INET}, {"ipv6", AF_INET6}};
inline constexpr auto familyOf = netlink::enumeration(netlink::u8, families);

// The representation of an address: 4 or 16 bytes, text in JavaScript.
struct Ip {};
inline constexpr Ip ip;

// A prefix: an optional address in an attribute and its length in the fixed header. Length 0 is the word `default`.
struct Prefix {
  std::optional<Bytes> address;
  uint8_t length = 0;
};
struct PrefixText {
  bool alwaysInJs;  // also when it is the default
};
inline constexpr PrefixText prefixText{false}, prefixOrDefault{true};

std::string formatIp(ByteView address);  // 4 or 16 bytes
std::string formatPrefix(const Prefix& prefix);
// Both throw std::invalid_argument. `default` is of no family, so it has no address.
Bytes parseIp(const std::string& text);
Prefix parsePrefix(const std::string& text);

inline void put(netlink::Encoder& encode, Named attribute, const Bytes& address, Ip) {
  put(encode, attribute, address, netlink::blob);
}
inline void get(ByteView data, Bytes& address, Ip) {
  if (data.size() != sizeof(in_addr) && data.size() != sizeof(in6_addr))
    netlink::malformed("address of the wrong length");
  get(data, address, netlink::blob);
}
inline void put(netlink::Encoder& encode, Named attribute, const Prefix& value, PrefixText) {
  encode.write(attribute, value.address, netlink::blob);
}
inline void get(ByteView data, Prefix& value, PrefixText) { get(data, value.address.emplace(), ip); }
constexpr bool mayBeAbsent(PrefixText) { return true; }

}  // namespace tproxy::rtnetlink
