#include "rtnetlink/link.h"

#include <net/if.h>

#include "rtnetlink/list.h"

namespace tproxy::rtnetlink {

Link decodeLink(netlink::ByteView bytes) {
  netlink::ByteView payload = netlink::readMessage(bytes).payload;
  const auto header = netlink::readHeader<ifinfomsg>(payload);
  Link link;
  link.index = static_cast<uint32_t>(header.ifi_index);
  link.flags = header.ifi_flags;
  netlink::decodeInto(payload, link);
  return link;
}

std::vector<Link> listLinks(netlink::Connection& connection) {
  std::vector<Link> links;
  for (const auto& message :
       connection.dump("list links", {NETLINK_NAMED(RTM_GETLINK), NLM_F_REQUEST, ifinfomsg{.ifi_family = AF_UNSPEC}}))
    links.push_back(decodeLink(message));
  return links;
}

Link getLink(netlink::Connection& connection, const Device& device) {
  ifinfomsg header{.ifi_family = AF_UNSPEC};
  header.ifi_index = static_cast<int>(device.index);
  netlink::Message request(NETLINK_NAMED(RTM_GETLINK), NLM_F_REQUEST, header);
  if (device.index == 0) netlink::Encoder(request).write(NETLINK_NAMED(IFLA_IFNAME), device.name, netlink::text);
  const std::string& said = device.index == 0 ? device.name : std::to_string(device.index);
  return decodeLink(connection.get("get link " + said, std::move(request)));
}

uint32_t linkIndex(netlink::Connection& connection, const std::string& name) {
  return getLink(connection, {.name = name}).index;
}

netlink::Message encodeLinkUp(uint32_t index, bool up) {
  ifinfomsg header{.ifi_family = AF_UNSPEC};
  header.ifi_index = static_cast<int>(index);
  header.ifi_change = IFF_UP;
  header.ifi_flags = up ? IFF_UP : 0;
  return {NETLINK_NAMED(RTM_NEWLINK), NLM_F_REQUEST | NLM_F_ACK, header};
}

void setLinkUp(netlink::Connection& connection, Device device, bool up) {
  if (device.index == 0) device.index = linkIndex(connection, device.name);
  connection.execute("set link", encodeLinkUp(device.index, up));
}

}  // namespace tproxy::rtnetlink
