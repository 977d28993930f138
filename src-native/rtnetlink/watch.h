// Being told of changes of policy rules, routes, interfaces and addresses: `ip monitor rule route link address`.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "netlink/watcher.h"

namespace tproxy::rtnetlink {

// Tells messages that decodeRule, decodeRoute, decodeLink and decodeAddress read. With a table, of routes only those in
// it: a router that speaks BGP changes others all the time.
netlink::Watcher::Id watch(netlink::Watcher& watcher, const std::string& netns, std::optional<uint32_t> table);

}  // namespace tproxy::rtnetlink
