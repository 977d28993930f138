#include "rtnetlink/watch.h"

#include <algorithm>

#include "rtnetlink/route.h"
#include "rtnetlink/rule.h"

namespace tproxy::rtnetlink {

namespace {

bool isInTable(const netlink::Received& message, uint32_t table) {
  ByteView payload = message.payload;
  const auto header = netlink::readHeader<rtmsg>(payload);
  if (header.rtm_table != RT_TABLE_UNSPEC && header.rtm_table != RT_TABLE_COMPAT) return header.rtm_table == table;
  return decodeRoute(message.whole).table == table;
}

bool hasPriority(const netlink::Received& message, const std::vector<uint32_t>& priorities) {
  return std::ranges::find(priorities, decodeRule(message.whole).priority.value_or(0)) != priorities.end();
}

// Others of these messages are a bridge's about its ports: one that leaves it would look like a link that goes.
bool isLink(const netlink::Received& message) {
  ByteView payload = message.payload;
  return netlink::readHeader<ifinfomsg>(payload).ifi_family == AF_UNSPEC;
}

}  // namespace

netlink::Watcher::Id watch(netlink::Watcher& watcher, const std::string& netns, WatchFilter filter) {
  return watcher.watch(NETLINK_ROUTE, netns,
                       {RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_LINK,
                        RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR},
                       [filter = std::move(filter)](const netlink::Received& message) {
                         switch (message.header.nlmsg_type) {
                           case RTM_NEWROUTE:
                           case RTM_DELROUTE:
                             return !filter.table || isInTable(message, *filter.table);
                           case RTM_NEWLINK:
                           case RTM_DELLINK:
                             return isLink(message);
                           case RTM_NEWRULE:
                           case RTM_DELRULE:
                             return !filter.priorities || hasPriority(message, *filter.priorities);
                           case RTM_NEWADDR:
                           case RTM_DELADDR:
                             return true;
                           default:
                             return false;
                         }
                       });
}

}  // namespace tproxy::rtnetlink
