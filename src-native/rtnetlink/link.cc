#include "rtnetlink/link.h"

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

uint32_t linkIndex(netlink::Connection& connection, const std::string& name) {
  netlink::Message request(NETLINK_NAMED(RTM_GETLINK), NLM_F_REQUEST, ifinfomsg{.ifi_family = AF_UNSPEC});
  netlink::Encoder(request).write(NETLINK_NAMED(IFLA_IFNAME), name, netlink::text);
  return decodeLink(connection.get("get link " + name, std::move(request))).index;
}

}  // namespace tproxy::rtnetlink
