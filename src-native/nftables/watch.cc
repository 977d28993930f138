#include "nftables/watch.h"

#include <linux/netfilter/nfnetlink.h>

#include "nftables/object.h"

namespace tproxy::nftables {

namespace {

uint16_t messageOf(const netlink::Received& message) { return message.header.nlmsg_type & UINT8_MAX; }

// Whatever a message is about, its first attribute names the table.
static_assert(NFTA_TABLE_NAME == 1 && NFTA_CHAIN_TABLE == 1 && NFTA_RULE_TABLE == 1 && NFTA_SET_TABLE == 1 &&
              NFTA_SET_ELEM_LIST_TABLE == 1 && NFTA_OBJ_TABLE == 1 && NFTA_FLOWTABLE_TABLE == 1);
std::string tableOf(const netlink::Received& message) {
  ByteView payload = message.payload;
  netlink::readHeader<nfgenmsg>(payload);
  std::string table;
  for (const netlink::Attribute& attribute : netlink::readAttributes(payload))
    if (attribute.type == NFTA_TABLE_NAME) get(attribute.data, table, text);
  return table;
}

}  // namespace

bool isGeneration(const netlink::Received& message) { return messageOf(message) == NFT_MSG_NEWGEN; }

netlink::Watcher::Id watch(netlink::Watcher& watcher, const std::string& netns, std::optional<std::string> table) {
  return watcher.watch(NETLINK_NETFILTER, netns, {NFNLGRP_NFTABLES},
                       [table = std::move(table), told = false](const netlink::Received& message) mutable {
                         if (isGeneration(message)) return std::exchange(told, false);
                         const bool wanted = !table || tableOf(message) == *table;
                         told |= wanted;
                         return wanted;
                       });
}

}  // namespace tproxy::nftables
