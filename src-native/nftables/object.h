// The objects of nf_tables: tables, chains, rules, sets and their elements, counters. See expression.h for what rules hold.
#pragma once
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "nftables/expression.h"

namespace tproxy::nftables {

// The messages about a kind of object.
struct Messages {
  const char* kind;
  Named add, erase, get;
};

inline constexpr Word families[] = {
    {"ip", NFPROTO_IPV4}, {"ip6", NFPROTO_IPV6},      {"inet", NFPROTO_INET},
    {"arp", NFPROTO_ARP}, {"bridge", NFPROTO_BRIDGE}, {"netdev", NFPROTO_NETDEV},
};
inline constexpr auto familyOf = enumeration(netlink::u8, families);

// ---- table ----------------------------------------------------------------------------------------------------------

inline constexpr uint32_t NFT_TABLE_F_PERSIST = 0x4;  // since Linux 6.9
inline constexpr Word tableFlags[] = {
    {"dormant", NFT_TABLE_F_DORMANT},
    {"owner", NFT_TABLE_F_OWNER},
    {"persist", NFT_TABLE_F_PERSIST},
};
struct Table {
  static constexpr Messages messages{"table", NETLINK_NAMED(NFT_MSG_NEWTABLE), NETLINK_NAMED(NFT_MSG_DELTABLE),
                                     NETLINK_NAMED(NFT_MSG_GETTABLE)};
  uint8_t family = 0;
  std::string name;
  uint32_t tableFlags = 0;
  std::optional<Bytes> userdata;
  std::optional<uint64_t> handle;
  std::optional<uint32_t> owner;
};
void describe(auto& visit, Is<Table> auto& table) {
  visit.header("family", table.family, familyOf);
  visit.key("name", NETLINK_NAMED(NFTA_TABLE_NAME), table.name, text);
  visit.handle("handle", NETLINK_NAMED(NFTA_TABLE_HANDLE), table.handle, be64);
  visit("flags", NETLINK_NAMED(NFTA_TABLE_FLAGS), table.tableFlags, zeroOnWireOnly(flags(be32, tableFlags)));
  visit("userdata", NETLINK_NAMED(NFTA_TABLE_USERDATA), table.userdata, blob);
  visit.readOnly("owner", NETLINK_NAMED(NFTA_TABLE_OWNER), table.owner, be32);
}

// ---- chain ----------------------------------------------------------------------------------------------------------

inline constexpr Word hooks[] = {
    {"prerouting", NF_INET_PRE_ROUTING}, {"input", NF_INET_LOCAL_IN},           {"forward", NF_INET_FORWARD},
    {"output", NF_INET_LOCAL_OUT},       {"postrouting", NF_INET_POST_ROUTING}, {"ingress", NF_INET_INGRESS},
};
inline constexpr Word policies[] = {{"accept", NF_ACCEPT}, {"drop", NF_DROP}};
struct Chain {
  static constexpr Messages messages{"chain", NETLINK_NAMED(NFT_MSG_NEWCHAIN), NETLINK_NAMED(NFT_MSG_DELCHAIN),
                                     NETLINK_NAMED(NFT_MSG_GETCHAIN)};
  uint8_t family = 0;
  std::string table, name;
  std::optional<std::string> type;
  std::optional<uint32_t> policy, hook;
  std::optional<int32_t> priority;
  std::optional<Bytes> userdata;
  std::optional<uint64_t> handle;
};
void describe(auto& visit, Is<Chain> auto& chain) {
  visit.header("family", chain.family, familyOf);
  visit.key("table", NETLINK_NAMED(NFTA_CHAIN_TABLE), chain.table, text);
  visit.handle("handle", NETLINK_NAMED(NFTA_CHAIN_HANDLE), chain.handle, be64);
  visit.key("name", NETLINK_NAMED(NFTA_CHAIN_NAME), chain.name, text);
  visit("type", NETLINK_NAMED(NFTA_CHAIN_TYPE), chain.type, text);
  visit("policy", NETLINK_NAMED(NFTA_CHAIN_POLICY), chain.policy, enumeration(be32, policies));
  visit.nest(NETLINK_NAMED(NFTA_CHAIN_HOOK), [&](auto& hook) {
    hook("hook", NETLINK_NAMED(NFTA_HOOK_HOOKNUM), chain.hook, enumeration(be32, hooks));
    hook("priority", NETLINK_NAMED(NFTA_HOOK_PRIORITY), chain.priority, be32);
  });
  visit("userdata", NETLINK_NAMED(NFTA_CHAIN_USERDATA), chain.userdata, blob);
}

// ---- rule -----------------------------------------------------------------------------------------------------------

struct Rule {
  static constexpr Messages messages{"rule", NETLINK_NAMED(NFT_MSG_NEWRULE), NETLINK_NAMED(NFT_MSG_DELRULE),
                                     NETLINK_NAMED(NFT_MSG_GETRULE)};
  uint8_t family = 0;
  std::string table, chain;
  std::vector<Expression> expressions;
  std::optional<uint32_t> compatProtocol, compatFlags;  // for the matches and targets of iptables; never listed
  std::optional<Bytes> userdata;
  std::optional<uint64_t> handle, position;
};
void describe(auto& visit, Is<Rule> auto& rule) {
  visit.header("family", rule.family, familyOf);
  visit.key("table", NETLINK_NAMED(NFTA_RULE_TABLE), rule.table, text);
  visit.key("chain", NETLINK_NAMED(NFTA_RULE_CHAIN), rule.chain, text);
  visit.handle("handle", NETLINK_NAMED(NFTA_RULE_HANDLE), rule.handle, be64);
  visit("expressions", NETLINK_NAMED(NFTA_RULE_EXPRESSIONS), rule.expressions,
        netlink::list(NETLINK_NAMED(NFTA_LIST_ELEM), expressed));
  visit.nest(NETLINK_NAMED(NFTA_RULE_COMPAT), [&](auto& compat) {
    compat("compatProtocol", NETLINK_NAMED(NFTA_RULE_COMPAT_PROTO), rule.compatProtocol, be32);
    compat("compatFlags", NETLINK_NAMED(NFTA_RULE_COMPAT_FLAGS), rule.compatFlags, be32);
  });
  visit("userdata", NETLINK_NAMED(NFTA_RULE_USERDATA), rule.userdata, blob);
  visit("position", NETLINK_NAMED(NFTA_RULE_POSITION), rule.position, be64);
}

// ---- set ------------------------------------------------------------------------------------------------------------

inline constexpr Word setFlags[] = {
    {"anonymous", NFT_SET_ANONYMOUS}, {"constant", NFT_SET_CONSTANT},
    {"interval", NFT_SET_INTERVAL},   {"map", NFT_SET_MAP},
    {"timeout", NFT_SET_TIMEOUT},     {"eval", NFT_SET_EVAL},
    {"object", NFT_SET_OBJECT},       {"concat", NFT_SET_CONCAT},
    {"expr", NFT_SET_EXPR},
};
inline constexpr Word setPolicies[] = {{"performance", NFT_SET_POL_PERFORMANCE}, {"memory", NFT_SET_POL_MEMORY}};
struct Set {
  static constexpr Messages messages{"set", NETLINK_NAMED(NFT_MSG_NEWSET), NETLINK_NAMED(NFT_MSG_DELSET),
                                     NETLINK_NAMED(NFT_MSG_GETSET)};
  uint8_t family = 0;
  std::string table, name;
  std::optional<uint64_t> handle;
  uint32_t setFlags = 0, keyType = 0, keyLength = 0;
  std::optional<uint32_t> id, policy, size;
  std::optional<std::vector<uint32_t>> concatenation;
  uint64_t timeoutMs = 0;
  uint32_t gcIntervalMs = 0;
  std::optional<Bytes> userdata;
};
void describe(auto& visit, Is<Set> auto& set) {
  visit.header("family", set.family, familyOf);
  visit.key("table", NETLINK_NAMED(NFTA_SET_TABLE), set.table, text);
  visit.key("name", NETLINK_NAMED(NFTA_SET_NAME), set.name, text);
  visit.handle("handle", NETLINK_NAMED(NFTA_SET_HANDLE), set.handle, be64);
  visit("flags", NETLINK_NAMED(NFTA_SET_FLAGS), set.setFlags, zeroOnWireOnly(flags(be32, setFlags)));
  visit("keyType", NETLINK_NAMED(NFTA_SET_KEY_TYPE), set.keyType, zeroInJsOnly(be32));
  visit("keyLength", NETLINK_NAMED(NFTA_SET_KEY_LEN), set.keyLength, be32);
  visit("id", NETLINK_NAMED(NFTA_SET_ID), set.id, be32);
  visit("policy", NETLINK_NAMED(NFTA_SET_POLICY), set.policy, enumeration(be32, setPolicies));
  visit.nest(NETLINK_NAMED(NFTA_SET_DESC), [&](auto& desc) {
    desc("size", NETLINK_NAMED(NFTA_SET_DESC_SIZE), set.size, be32);
    desc("concatenation", NETLINK_NAMED(NFTA_SET_DESC_CONCAT), set.concatenation,
         netlink::list(NETLINK_NAMED(NFTA_LIST_ELEM), netlink::nested(NETLINK_NAMED(NFTA_SET_FIELD_LEN), be32)));
  });
  visit("timeoutMs", NETLINK_NAMED(NFTA_SET_TIMEOUT), set.timeoutMs, zeroAbsent(be64));
  visit("gcIntervalMs", NETLINK_NAMED(NFTA_SET_GC_INTERVAL), set.gcIntervalMs, zeroAbsent(be32));
  visit("userdata", NETLINK_NAMED(NFTA_SET_USERDATA), set.userdata, blob);
}

// ---- elements -------------------------------------------------------------------------------------------------------

inline constexpr Word elementFlags[] = {
    {"intervalEnd", NFT_SET_ELEM_INTERVAL_END},
    {"catchall", NFT_SET_ELEM_CATCHALL},
};
struct Element {
  uint32_t elementFlags = 0;
  uint64_t timeoutMs = 0, expiresMs = 0;
  Bytes key, keyEnd, userdata;  // no bytes: not there; a catchall element has no key
};
void describe(auto& visit, Is<Element> auto& element) {
  const auto value = netlink::nested(NETLINK_NAMED(NFTA_DATA_VALUE), blob);
  visit.key("flags", NETLINK_NAMED(NFTA_SET_ELEM_FLAGS), element.elementFlags, zeroAbsent(flags(be32, elementFlags)));
  visit("timeoutMs", NETLINK_NAMED(NFTA_SET_ELEM_TIMEOUT), element.timeoutMs, zeroAbsent(be64));
  visit.readOnly("expiresMs", NETLINK_NAMED(NFTA_SET_ELEM_EXPIRATION), element.expiresMs, zeroAbsent(be64));
  visit.key("key", NETLINK_NAMED(NFTA_SET_ELEM_KEY), element.key, zeroInJsOnly(value));
  visit.key("keyEnd", NETLINK_NAMED(NFTA_SET_ELEM_KEY_END), element.keyEnd, zeroAbsent(value));
  visit("userdata", NETLINK_NAMED(NFTA_SET_ELEM_USERDATA), element.userdata, zeroAbsent(blob));
}

struct Elements {
  static constexpr Messages messages{"elements", NETLINK_NAMED(NFT_MSG_NEWSETELEM), NETLINK_NAMED(NFT_MSG_DELSETELEM),
                                     NETLINK_NAMED(NFT_MSG_GETSETELEM)};
  uint8_t family = 0;
  std::string table, set;
  std::optional<uint32_t> setId;
  std::vector<Element> elements;
};
void describe(auto& visit, Is<Elements> auto& elements) {
  visit.header("family", elements.family, familyOf);
  visit.key("table", NETLINK_NAMED(NFTA_SET_ELEM_LIST_TABLE), elements.table, text);
  visit.key("set", NETLINK_NAMED(NFTA_SET_ELEM_LIST_SET), elements.set, text);
  visit("setId", NETLINK_NAMED(NFTA_SET_ELEM_LIST_SET_ID), elements.setId, be32);
  visit.key("elements", NETLINK_NAMED(NFTA_SET_ELEM_LIST_ELEMENTS), elements.elements,
            netlink::numberedList(NETLINK_NAMED(NFTA_LIST_ELEM), netlink::described));
}

// ---- counter --------------------------------------------------------------------------------------------------------

// The one kind of named object that this knows: what rules count into with an objref.
struct NamedCounter {
  static constexpr Messages messages{"counter", NETLINK_NAMED(NFT_MSG_NEWOBJ), NETLINK_NAMED(NFT_MSG_DELOBJ),
                                     NETLINK_NAMED(NFT_MSG_GETOBJ)};
  uint8_t family = 0;
  std::string table, name;
  uint64_t bytes = 0, packets = 0;
  std::optional<uint32_t> use;  // rules that refer to it
  std::optional<Bytes> userdata;
  std::optional<uint64_t> handle;
};
void describe(auto& visit, Is<NamedCounter> auto& counter) {
  visit.header("family", counter.family, familyOf);
  visit.key("table", NETLINK_NAMED(NFTA_OBJ_TABLE), counter.table, text);
  visit.key("name", NETLINK_NAMED(NFTA_OBJ_NAME), counter.name, text);
  visit.constant(NETLINK_NAMED(NFTA_OBJ_TYPE), uint32_t{NFT_OBJECT_COUNTER}, be32);
  visit.handle("handle", NETLINK_NAMED(NFTA_OBJ_HANDLE), counter.handle, be64);
  visit.nest(NETLINK_NAMED(NFTA_OBJ_DATA), [&](auto& data) {
    data("bytes", NETLINK_NAMED(NFTA_COUNTER_BYTES), counter.bytes, netlink::zeroByDefault(be64));
    data("packets", NETLINK_NAMED(NFTA_COUNTER_PACKETS), counter.packets, netlink::zeroByDefault(be64));
  });
  visit("userdata", NETLINK_NAMED(NFTA_OBJ_USERDATA), counter.userdata, blob);
  visit.readOnly("use", NETLINK_NAMED(NFTA_OBJ_USE), counter.use, be32);
}

using Object = std::variant<Table, Chain, Rule, Set, Elements, NamedCounter>;

// ---- generation -----------------------------------------------------------------------------------------------------

struct Generation {
  uint32_t id = 0, processId = 0;
  std::string processName;
};
void describe(auto& visit, Is<Generation> auto& generation) {
  visit("id", NETLINK_NAMED(NFTA_GEN_ID), generation.id, be32);
  visit("processId", NETLINK_NAMED(NFTA_GEN_PROC_PID), generation.processId, be32);
  visit("processName", NETLINK_NAMED(NFTA_GEN_PROC_NAME), generation.processName, text);
}

}  // namespace tproxy::nftables
