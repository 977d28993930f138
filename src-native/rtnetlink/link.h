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

// An interface in a message: a number there, a name or a number in JavaScript. Who encodes has found the number of the
// name, who lists has found the name of the number.
struct Device {
  uint32_t index = 0;
  std::string name;
};
struct DeviceIndex {};
inline void put(netlink::Encoder& encode, netlink::Named attribute, const Device& device, DeviceIndex) {
  put(encode, attribute, device.index, netlink::host32);
}
inline void get(netlink::ByteView data, Device& device, DeviceIndex) { get(data, device.index, netlink::host32); }

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
// Throw netlink::Error ENODEV when there is no such interface.
Link getLink(netlink::Connection& connection, const Device& device);
uint32_t linkIndex(netlink::Connection& connection, const std::string& name);

// `ip link set up`, `down`. Other flags stay as they are.
netlink::Message encodeLinkUp(uint32_t index, bool up);
void setLinkUp(netlink::Connection& connection, Device device, bool up);

}  // namespace tproxy::rtnetlink
