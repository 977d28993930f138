// Being told of changes of policy rules, routes, interfaces and addresses: `ip monitor rule route link address`.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "netlink/watcher.h"

namespace tproxy::rtnetlink {

// A router that speaks BGP changes routes all the time, and one with many tunnels its policy rules.
struct WatchFilter {
  std::optional<uint32_t> table;                    // of routes only those in it
  std::optional<std::vector<uint32_t>> priorities;  // of rules only those with one of them
};

// Tells messages that decodeRule, decodeRoute, decodeLink and decodeAddress read.
netlink::Watcher::Id watch(netlink::Watcher& watcher, const std::string& netns, WatchFilter filter);

}  // namespace tproxy::rtnetlink
