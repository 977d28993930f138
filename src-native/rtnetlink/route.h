// Routes: `ip route`. linux/rtnetlink.h
#pragma once
#include <linux/rtnetlink.h>

#include <optional>
#include <string>
#include <vector>

#include "netlink/connection.h"
#include "rtnetlink/address_text.h"
#include "rtnetlink/link.h"
#include "rtnetlink/rule.h"

namespace tproxy::rtnetlink {

inline constexpr Word routeTypes[] = {
    {"unicast", RTN_UNICAST},         {"local", RTN_LOCAL},         {"broadcast", RTN_BROADCAST},
    {"anycast", RTN_ANYCAST},         {"multicast", RTN_MULTICAST}, {"blackhole", RTN_BLACKHOLE},
    {"unreachable", RTN_UNREACHABLE}, {"prohibit", RTN_PROHIBIT},   {"throw", RTN_THROW},
};
inline constexpr Word scopes[] = {
    {"universe", RT_SCOPE_UNIVERSE}, {"site", RT_SCOPE_SITE},       {"link", RT_SCOPE_LINK},
    {"host", RT_SCOPE_HOST},         {"nowhere", RT_SCOPE_NOWHERE},
};

// One of several ways, which has a fixed header of its own in its attribute.
struct NextHop {
  std::optional<Device> device;
  std::optional<Bytes> gateway;
  std::optional<uint16_t> weight;  // 1 more than on the wire
};
void describe(auto& visit, Is<NextHop> auto& hop) {
  visit.header("dev", hop.device, DeviceIndex());
  visit("gateway", NETLINK_NAMED(RTA_GATEWAY), hop.gateway, ip);
  visit.header("weight", hop.weight, netlink::host16);
}
// The representation: all of them, in one attribute.
struct NextHops {};
void put(netlink::Encoder& encode, Named attribute, const std::vector<NextHop>& hops, NextHops);
void get(ByteView data, std::vector<NextHop>& hops, NextHops);

struct Route {
  uint8_t family = 0, type = 0;
  std::optional<uint8_t> scope, protocol;
  Prefix destination;
  std::optional<Bytes> gateway, preferredSource;
  std::optional<uint32_t> metric;
  uint32_t table = 0;
  std::optional<Device> device;
  std::optional<std::vector<NextHop>> nextHops;
};
void describe(auto& visit, Is<Route> auto& route) {
  using namespace netlink;
  visit.header("family", route.family, familyOf);
  visit.header("type", route.type, enumeration(u8, routeTypes));
  visit.header("scope", route.scope, enumeration(u8, scopes));
  visit.header("protocol", route.protocol, u8);
  visit("destination", NETLINK_NAMED(RTA_DST), route.destination, prefixOrDefault);
  visit("gateway", NETLINK_NAMED(RTA_GATEWAY), route.gateway, ip);
  visit("preferredSource", NETLINK_NAMED(RTA_PREFSRC), route.preferredSource, ip);
  visit("metric", NETLINK_NAMED(RTA_PRIORITY), route.metric, host32);
  visit("table", NETLINK_NAMED(RTA_TABLE), route.table, LargeTable());
  visit("dev", NETLINK_NAMED(RTA_OIF), route.device, DeviceIndex());
  visit("nexthops", NETLINK_NAMED(RTA_MULTIPATH), route.nextHops, NextHops());
}

// Of the route itself and of its next hops.
void forEachDevice(Route& route, const auto& call) {
  if (route.device) call(*route.device);
  if (!route.nextHops) return;
  for (NextHop& hop : *route.nextHops)
    if (hop.device) call(*hop.device);
}

// The interface indexes must be known already.
netlink::Message encodeRoute(Verb verb, Route route);
Route decodeRoute(ByteView message);

void changeRoute(netlink::Connection& connection, Verb verb, Route route);
struct RouteFilter {
  std::optional<uint8_t> family;
  std::optional<uint32_t> table;
};

// What `ip route get` asks: where a packet would go.
struct RouteQuery {
  uint8_t family = 0;
  Bytes destination;
  std::optional<Bytes> source;
  std::optional<Device> iif, oif;
  std::optional<uint32_t> mark, user;
};
void describe(auto& visit, Is<RouteQuery> auto& query) {
  using namespace netlink;
  visit.header("family", query.family, familyOf);
  visit("destination", NETLINK_NAMED(RTA_DST), query.destination, ip);
  visit("source", NETLINK_NAMED(RTA_SRC), query.source, ip);
  visit("uid", NETLINK_NAMED(RTA_UID), query.user, host32);
  visit("iif", NETLINK_NAMED(RTA_IIF), query.iif, DeviceIndex());
  visit("oif", NETLINK_NAMED(RTA_OIF), query.oif, DeviceIndex());
  visit("mark", NETLINK_NAMED(RTA_MARK), query.mark, host32);
}
// The interface indexes must be known already.
netlink::Message encodeRouteQuery(const RouteQuery& query);
Route getRoute(netlink::Connection& connection, RouteQuery query);

std::vector<Route> listRoutes(netlink::Connection& connection, const RouteFilter& filter);

}  // namespace tproxy::rtnetlink
