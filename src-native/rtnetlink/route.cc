#include "rtnetlink/route.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "rtnetlink/link.h"
#include "rtnetlink/list.h"

namespace tproxy::rtnetlink {

namespace {

// What `ip route` takes when none is said.
uint8_t defaultScope(Verb verb, const Route& route) {
  if (route.family == AF_INET6) return RT_SCOPE_UNIVERSE;
  switch (route.type) {
    case RTN_LOCAL:
      return RT_SCOPE_HOST;
    case RTN_BROADCAST:
    case RTN_MULTICAST:
    case RTN_ANYCAST:
      return RT_SCOPE_LINK;
    case RTN_UNICAST:
      if (verb == Verb::erase) return RT_SCOPE_NOWHERE;
      return route.gateway || route.nextHops ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
    default:
      return verb == Verb::erase ? RT_SCOPE_NOWHERE : RT_SCOPE_UNIVERSE;
  }
}

}  // namespace

void put(netlink::Encoder& encode, Named attribute, const std::vector<NextHop>& hops, NextHops) {
  netlink::Message& message = encode.message();
  const size_t all = message.open(attribute, 0);
  for (const NextHop& hop : hops) {
    // Its header is that of an attribute, but for two bytes in the place of the type, and the index behind it.
    const uint8_t flagsAndHops[] = {0, static_cast<uint8_t>(hop.weight.value_or(1) - 1)};
    const uint32_t index = hop.device ? hop.device->index : 0;
    const size_t one = message.open({std::bit_cast<uint16_t>(flagsAndHops), attribute.name}, 0);
    message.append(&index, sizeof index);
    describe(encode, hop);
    message.close(one, true);
  }
  message.close(all, true);
}

void get(ByteView data, std::vector<NextHop>& hops, NextHops) {
  while (!data.empty()) {
    ByteView attributes = data;
    const auto header = netlink::readHeader<rtnexthop>(attributes);
    if (header.rtnh_len < sizeof header || header.rtnh_len > data.size())
      netlink::malformed("length of a next hop out of range");
    NextHop& hop = hops.emplace_back();
    if (header.rtnh_ifindex != 0) hop.device.emplace().index = static_cast<uint32_t>(header.rtnh_ifindex);
    hop.weight = header.rtnh_hops + 1;
    netlink::decodeInto(attributes.first(header.rtnh_len - sizeof header), hop);
    data = data.subspan(std::min<size_t>(RTNH_ALIGN(header.rtnh_len), data.size()));
  }
}

netlink::Message encodeRoute(Verb verb, Route route) {
  const bool add = verb != Verb::erase;
  // `ip -4 route` and `ip -6 route` write the default out.
  if (!route.destination.address)
    route.destination.address = Bytes(route.family == AF_INET6 ? sizeof(in6_addr) : sizeof(in_addr));
  rtmsg header{};
  header.rtm_family = route.family;
  header.rtm_dst_len = route.destination.length;
  header.rtm_table = tableInHeader(route.table);
  header.rtm_protocol = route.protocol.value_or(add ? RTPROT_BOOT : RTPROT_UNSPEC);
  header.rtm_scope = route.scope.value_or(defaultScope(verb, route));
  header.rtm_type = route.type;
  netlink::Message message(add ? NETLINK_NAMED(RTM_NEWROUTE) : NETLINK_NAMED(RTM_DELROUTE), flagsOf(verb), header);
  netlink::Encoder encoder(message);
  describe(encoder, route);
  return message;
}

Route decodeRoute(ByteView bytes) {
  ByteView payload = netlink::readMessage(bytes).payload;
  const auto header = netlink::readHeader<rtmsg>(payload);
  Route route;
  route.family = header.rtm_family;
  route.type = header.rtm_type;
  route.scope = header.rtm_scope;
  route.protocol = header.rtm_protocol;
  route.table = header.rtm_table;
  route.destination.length = header.rtm_dst_len;
  netlink::decodeInto(payload, route);
  if (route.destination.length > 0 && !route.destination.address) netlink::malformed("RTA_DST is missing");
  return route;
}

void changeRoute(netlink::Connection& connection, Verb verb, Route route) {
  Names names(connection);
  forEachDevice(route, [&](Device& device) { names.resolve(device); });
  connection.execute(wordOf(verb) + std::string(" route"), encodeRoute(verb, std::move(route)));
}

netlink::Message encodeRouteQuery(const RouteQuery& query) {
  rtmsg header{};
  header.rtm_family = query.family;
  header.rtm_dst_len = static_cast<uint8_t>(query.destination.size() * 8);
  header.rtm_src_len = static_cast<uint8_t>(query.source ? query.source->size() * 8 : 0);
  // Tell the table too, rather than always `main`, as IPv6 does anyway.
  if (query.family == AF_INET) header.rtm_flags = RTM_F_LOOKUP_TABLE;
  netlink::Message message(NETLINK_NAMED(RTM_GETROUTE), NLM_F_REQUEST, header);
  netlink::Encoder encoder(message);
  describe(encoder, query);
  return message;
}

Route getRoute(netlink::Connection& connection, RouteQuery query) {
  Names names(connection);
  names.resolve(query.iif);
  names.resolve(query.oif);
  Route route = decodeRoute(connection.get("get route", encodeRouteQuery(query)));
  forEachDevice(route, [&](Device& device) { device.name = getLink(connection, device).name; });
  return route;
}

std::vector<Route> listRoutes(netlink::Connection& connection, const RouteFilter& filter) {
  std::vector<Route> routes;
  forEachFamily(filter.family, [&](uint8_t family) {
    rtmsg header{};
    header.rtm_family = family;
    netlink::Message request(NETLINK_NAMED(RTM_GETROUTE), NLM_F_REQUEST, header);
    // The kernel filters where it checks requests strictly.
    netlink::Encoder(request).write(NETLINK_NAMED(RTA_TABLE), filter.table, netlink::host32);
    for (const Bytes& message :
         connection.dump("list routes", std::move(request), netlink::Connection::Missing::isEmpty)) {
      Route route = decodeRoute(message);
      if (route.family != family || (filter.table && route.table != *filter.table)) continue;
      routes.push_back(std::move(route));
    }
  });
  if (routes.empty()) return routes;
  std::unordered_map<uint32_t, std::string> names;
  for (const Link& link : listLinks(connection)) names[link.index] = link.name;
  for (Route& route : routes) forEachDevice(route, [&](Device& device) { device.name = names[device.index]; });
  return routes;
}

}  // namespace tproxy::rtnetlink
