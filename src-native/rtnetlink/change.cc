#include "rtnetlink/change.h"

#include <unordered_map>

#include "rtnetlink/link.h"

namespace tproxy::rtnetlink {

std::vector<netlink::Message> encodeChanges(netlink::Connection& connection, const std::vector<Change>& changes) {
  std::unordered_map<std::string, uint32_t> indexes;
  std::vector<netlink::Message> messages;
  for (const Change& change : changes) {
    if (const auto* rule = std::get_if<Rule>(&change.object)) {
      messages.push_back(encodeRule(change.verb, *rule));
      continue;
    }
    if (const auto* address = std::get_if<Address>(&change.object)) {
      messages.push_back(encodeAddress(change.verb, *address));
      continue;
    }
    Route route = std::get<Route>(change.object);
    if (route.device && route.device->index == 0) {
      uint32_t& index = indexes[route.device->name];
      if (index == 0) index = linkIndex(connection, route.device->name);
      route.device->index = index;
    }
    messages.push_back(encodeRoute(change.verb, std::move(route)));
  }
  return messages;
}

void change(netlink::Connection& connection, const std::vector<Change>& changes) {
  connection.executeAll("change routing", encodeChanges(connection, changes));
}

}  // namespace tproxy::rtnetlink
