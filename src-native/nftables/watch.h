// Being told of changes of the rule set: `nft monitor`.
#pragma once
#include <optional>
#include <string>

#include "netlink/watcher.h"

namespace tproxy::nftables {

// Tells the messages of each committed batch that concern the table (or any, without one): those that decodeOperation
// reads, and at the batch's end its generation, which decodeGeneration reads.
netlink::Watcher::Id watch(netlink::Watcher& watcher, const std::string& netns, std::optional<std::string> table);

bool isGeneration(const netlink::Received& message);

}  // namespace tproxy::nftables
