// Policy routing rules: `ip rule`. linux/fib_rules.h
#pragma once
#include <linux/fib_rules.h>

#include <optional>
#include <string>
#include <vector>

#include "netlink/connection.h"
#include "rtnetlink/address_text.h"

namespace tproxy::rtnetlink {

inline constexpr Word ruleActions[] = {
    {"lookup", FR_ACT_TO_TBL},
    {"goto", FR_ACT_GOTO},
    {"nop", FR_ACT_NOP},
    {"blackhole", FR_ACT_BLACKHOLE},
    {"unreachable", FR_ACT_UNREACHABLE},
    {"prohibit", FR_ACT_PROHIBIT},
};

// Two numbers in one attribute: fib_rule_port_range, fib_rule_uid_range.
template <class KernelRange>
struct Range {};
template <class KernelRange>
void put(netlink::Encoder& encode, Named attribute, const KernelRange& range, Range<KernelRange>) {
  encode.message().put(attribute, &range, sizeof range);
}
template <class KernelRange>
void get(ByteView data, KernelRange& range, Range<KernelRange>) {
  if (data.size() != sizeof range) netlink::malformed("range of the wrong length");
  std::memcpy(&range, data.data(), sizeof range);
}
inline constexpr Range<fib_rule_port_range> portRange;
inline constexpr Range<fib_rule_uid_range> uidRange;

struct Rule {
  uint8_t family = 0, action = 0, tos = 0;
  bool invert = false, l3mdev = false;
  Prefix from, to;
  std::optional<std::string> iif, oif;
  std::optional<uint32_t> mark, mask;
  std::optional<uint8_t> ipProtocol;
  std::optional<fib_rule_port_range> sourcePorts, destinationPorts;
  std::optional<fib_rule_uid_range> users;
  std::optional<uint32_t> table, gotoPriority, suppressPrefixLength, priority;
  uint8_t protocol = 0;
};

// A table number fits the header when it is below 256; only a larger one has an attribute.
struct LargeTable {};
inline void put(netlink::Encoder& encode, Named attribute, uint32_t table, LargeTable) {
  if (table > UINT8_MAX) put(encode, attribute, table, netlink::host32);
}
inline void get(ByteView data, uint32_t& table, LargeTable) { get(data, table, netlink::host32); }
constexpr bool mayBeAbsent(LargeTable) { return true; }
constexpr uint8_t tableInHeader(uint32_t table) {
  return static_cast<uint8_t>(table > UINT8_MAX ? RT_TABLE_UNSPEC : table);
}

void describe(auto& visit, Is<Rule> auto& rule) {
  using namespace netlink;
  visit.header("family", rule.family, familyOf);
  visit.header("action", rule.action, enumeration(u8, ruleActions));
  visit.header("tos", rule.tos, zeroAbsent(u8));
  visit.header("invert", rule.invert, flag(u8, 1));
  visit("from", NETLINK_NAMED(FRA_SRC), rule.from, prefixText);
  visit("to", NETLINK_NAMED(FRA_DST), rule.to, prefixText);
  visit("iif", NETLINK_NAMED(FRA_IIFNAME), rule.iif, text);
  visit("oif", NETLINK_NAMED(FRA_OIFNAME), rule.oif, text);
  visit.group("fwmark", [&](auto& fwmark) {
    fwmark("value", NETLINK_NAMED(FRA_FWMARK), rule.mark, host32);
    fwmark("mask", NETLINK_NAMED(FRA_FWMASK), rule.mask, host32);
  });
  visit("ipProtocol", NETLINK_NAMED(FRA_IP_PROTO), rule.ipProtocol, u8);
  visit("sourcePorts", NETLINK_NAMED(FRA_SPORT_RANGE), rule.sourcePorts, portRange);
  visit("destinationPorts", NETLINK_NAMED(FRA_DPORT_RANGE), rule.destinationPorts, portRange);
  visit("users", NETLINK_NAMED(FRA_UID_RANGE), rule.users, uidRange);
  visit("l3mdev", NETLINK_NAMED(FRA_L3MDEV), rule.l3mdev, flag(u8, 1));
  visit("table", NETLINK_NAMED(FRA_TABLE), rule.table, LargeTable());
  visit("goto", NETLINK_NAMED(FRA_GOTO), rule.gotoPriority, host32);
  visit("suppressPrefixLength", NETLINK_NAMED(FRA_SUPPRESS_PREFIXLEN), rule.suppressPrefixLength, host32);
  visit("priority", NETLINK_NAMED(FRA_PRIORITY), rule.priority, host32);
  visit("protocol", NETLINK_NAMED(FRA_PROTOCOL), rule.protocol, zeroAbsent(u8));
}

// Policy rules cannot be replaced: the kernel knows no rule that is the same but for something.
enum class Verb { add, replace, erase };
const char* wordOf(Verb verb);
// The flags of a request that makes something, or NLM_F_REQUEST and NLM_F_ACK alone.
uint16_t flagsOf(Verb verb);

netlink::Message encodeRule(Verb verb, const Rule& rule);
Rule decodeRule(ByteView message);

void changeRule(netlink::Connection& connection, Verb verb, const Rule& rule);
// Of IPv4 and IPv6, when no family is given.
std::vector<Rule> listRules(netlink::Connection& connection, std::optional<uint8_t> family);

}  // namespace tproxy::rtnetlink
