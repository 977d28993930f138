// Addresses of interfaces: `ip address`. linux/if_addr.h
#pragma once
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>

#include <optional>
#include <vector>

#include "netlink/connection.h"
#include "rtnetlink/address_text.h"
#include "rtnetlink/route.h"

namespace tproxy::rtnetlink {

inline constexpr Word addressFlags[] = {
    {"secondary", IFA_F_SECONDARY},         {"nodad", IFA_F_NODAD},         {"optimistic", IFA_F_OPTIMISTIC},
    {"dadfailed", IFA_F_DADFAILED},         {"home", IFA_F_HOMEADDRESS},    {"deprecated", IFA_F_DEPRECATED},
    {"tentative", IFA_F_TENTATIVE},         {"permanent", IFA_F_PERMANENT}, {"mngtmpaddr", IFA_F_MANAGETEMPADDR},
    {"noprefixroute", IFA_F_NOPREFIXROUTE}, {"autojoin", IFA_F_MCAUTOJOIN}, {"stable-privacy", IFA_F_STABLE_PRIVACY},
};
// Flags fit the header when they are below 256; only larger ones have an attribute.
struct LargeFlags {};
inline void put(netlink::Encoder& encode, Named attribute, uint32_t flags, LargeFlags) {
  if (flags > UINT8_MAX) put(encode, attribute, flags, netlink::host32);
}
inline void get(ByteView data, uint32_t& flags, LargeFlags) { get(data, flags, netlink::host32); }
constexpr bool mayBeAbsent(LargeFlags) { return true; }

struct Address {
  uint8_t family = 0, prefixLength = 0, scope = 0;
  uint32_t linkIndex = 0;
  uint32_t addressFlags = 0;
  // IFA_LOCAL is the address itself. IFA_ADDRESS is the peer's on a point-to-point link, and the only one in IPv6.
  std::optional<Bytes> local, address, peer, broadcast;
};
void describe(auto& visit, Is<Address> auto& address) {
  using namespace netlink;
  visit.header("family", address.family, familyOf);
  visit("address", NETLINK_NAMED(IFA_LOCAL), address.local, ip);
  visit("broadcast", NETLINK_NAMED(IFA_BROADCAST), address.broadcast, ip);
  visit.wireOnly(NETLINK_NAMED(IFA_FLAGS), address.addressFlags, LargeFlags());
  visit.wireOnly(NETLINK_NAMED(IFA_ADDRESS), address.address, ip);
  visit.header("peer", address.peer, ip);
  visit.header("prefixLength", address.prefixLength, u8);
  visit.header("linkIndex", address.linkIndex, host32);
  visit.header("scope", address.scope, enumeration(u8, scopes));
  visit.header("flags", address.addressFlags, zeroAbsent(flags(host32, addressFlags)));
}

netlink::Message encodeAddress(Verb verb, Address address);
void changeAddress(netlink::Connection& connection, Verb verb, Address address);
Address decodeAddress(ByteView message);
std::vector<Address> listAddresses(netlink::Connection& connection, std::optional<uint8_t> family);

}  // namespace tproxy::rtnetlink
