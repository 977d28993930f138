// Routes: `ip route`. linux/rtnetlink.h
#pragma once
#include <linux/rtnetlink.h>

#include <optional>
#include <string>
#include <vector>

#include "netlink/connection.h"
#include "rtnetlink/address_text.h"
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

// An interface in a message: a number there, a name or a number in JavaScript. Who encodes has found the number of the
// name, who lists has found the name of the number.
struct Device {
  uint32_t index = 0;
  std::string name;
};
struct DeviceIndex {};
inline void put(netlink::Encoder& encode, Named attribute, const Device& device, DeviceIndex) {
  put(encode, attribute, device.index, netlink::host32);
}
inline void get(ByteView data, Device& device, DeviceIndex) { get(data, device.index, netlink::host32); }

struct Route {
  uint8_t family = 0, type = 0;
  std::optional<uint8_t> scope, protocol;
  Prefix destination;
  std::optional<Bytes> gateway, preferredSource;
  std::optional<uint32_t> metric;
  uint32_t table = 0;
  std::optional<Device> device;
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
}

// With the index of the interface that the route names.
Route resolved(netlink::Connection& connection, Route route);
// The interface index must be known already.
netlink::Message encodeRoute(Verb verb, Route route);
Route decodeRoute(ByteView message);

void addRoute(netlink::Connection& connection, Route route);
void deleteRoute(netlink::Connection& connection, Route route);
struct RouteFilter {
  std::optional<uint8_t> family;
  std::optional<uint32_t> table;
};
std::vector<Route> listRoutes(netlink::Connection& connection, const RouteFilter& filter);

}  // namespace tproxy::rtnetlink
