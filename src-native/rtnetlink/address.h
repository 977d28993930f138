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

struct Address {
  uint8_t family = 0, prefixLength = 0, scope = 0;
  uint32_t linkIndex = 0;
  // IFA_LOCAL is the address itself. IFA_ADDRESS is the peer's on a point-to-point link, and the only one in IPv6.
  std::optional<Bytes> local, address;
};
void describe(auto& visit, Is<Address> auto& address) {
  using namespace netlink;
  visit.header("family", address.family, familyOf);
  visit("address", NETLINK_NAMED(IFA_LOCAL), address.local, ip);
  visit.wireOnly(NETLINK_NAMED(IFA_ADDRESS), address.address, ip);
  visit.header("prefixLength", address.prefixLength, u8);
  visit.header("linkIndex", address.linkIndex, host32);
  visit.header("scope", address.scope, enumeration(u8, scopes));
}

Address decodeAddress(ByteView message);
std::vector<Address> listAddresses(netlink::Connection& connection, std::optional<uint8_t> family);

}  // namespace tproxy::rtnetlink
