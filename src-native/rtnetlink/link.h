// Interfaces: `ip link`. linux/if_link.h
#pragma once
#include <linux/if_link.h>
#include <linux/rtnetlink.h>

#include <optional>
#include <string>
#include <vector>

#include "netlink/connection.h"
#include "netlink/describe.h"

namespace tproxy::rtnetlink {

struct Link {
  uint32_t index = 0, flags = 0;
  std::string name;
  std::optional<uint32_t> mtu;
};
void describe(auto& visit, netlink::Is<Link> auto& link) {
  visit.header("index", link.index, netlink::host32);
  visit("name", NETLINK_NAMED(IFLA_IFNAME), link.name, netlink::text);
  visit.header("flags", link.flags, netlink::host32);
  visit("mtu", NETLINK_NAMED(IFLA_MTU), link.mtu, netlink::host32);
}

Link decodeLink(netlink::ByteView message);
std::vector<Link> listLinks(netlink::Connection& connection);
// Throws netlink::Error ENODEV when there is no such interface.
uint32_t linkIndex(netlink::Connection& connection, const std::string& name);

}  // namespace tproxy::rtnetlink
