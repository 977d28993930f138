#include "rtnetlink/rule.h"

#include "rtnetlink/list.h"

namespace tproxy::rtnetlink {

namespace {
constexpr uint32_t noSuppressPrefixLength = UINT32_MAX;  // what the kernel shows when there is none
}

const char* wordOf(Verb verb) {
  switch (verb) {
    case Verb::add:
      return "add";
    case Verb::replace:
      return "replace";
    case Verb::erase:
      return "delete";
  }
  __builtin_unreachable();
}

uint16_t flagsOf(Verb verb) {
  const int flags = NLM_F_REQUEST | NLM_F_ACK;
  if (verb == Verb::add) return flags | NLM_F_CREATE | NLM_F_EXCL;
  if (verb == Verb::replace) return flags | NLM_F_CREATE | NLM_F_REPLACE;
  return flags;
}

netlink::Message encodeRule(Verb verb, const Rule& rule) {
  const bool add = verb == Verb::add;
  fib_rule_hdr header{};
  header.family = rule.family;
  header.dst_len = rule.to.length;
  header.src_len = rule.from.length;
  header.tos = rule.tos;
  header.table = tableInHeader(rule.table.value_or(RT_TABLE_UNSPEC));
  // `ip rule del ... lookup T` leaves the action open; the table says enough.
  header.action = !add && rule.action == FR_ACT_TO_TBL ? uint8_t{FR_ACT_UNSPEC} : rule.action;
  header.flags = rule.invert ? FIB_RULE_INVERT : 0;
  netlink::Message message(add ? NETLINK_NAMED(RTM_NEWRULE) : NETLINK_NAMED(RTM_DELRULE), flagsOf(verb), header);
  netlink::Encoder encoder(message);
  describe(encoder, rule);
  return message;
}

Rule decodeRule(ByteView bytes) {
  const netlink::Received message = netlink::readMessage(bytes);
  ByteView payload = message.payload;
  const auto header = netlink::readHeader<fib_rule_hdr>(payload);
  Rule rule;
  rule.family = header.family;
  rule.action = header.action;
  if (message.header.nlmsg_type == RTM_DELRULE && rule.action == FR_ACT_UNSPEC) rule.action = FR_ACT_TO_TBL;
  rule.tos = header.tos;
  rule.invert = header.flags & FIB_RULE_INVERT;
  rule.from.length = header.src_len;
  rule.to.length = header.dst_len;
  netlink::decodeInto(payload, rule);
  if (!rule.table) rule.table = header.table;
  if (rule.table == RT_TABLE_UNSPEC) rule.table.reset();
  if (rule.mask && !rule.mark) rule.mark = 0;  // the kernel leaves a zero out
  if (rule.suppressPrefixLength == noSuppressPrefixLength) rule.suppressPrefixLength.reset();
  return rule;
}

void changeRule(netlink::Connection& connection, Verb verb, const Rule& rule) {
  connection.execute(wordOf(verb) + std::string(" rule"), encodeRule(verb, rule));
}

std::vector<Rule> listRules(netlink::Connection& connection, std::optional<uint8_t> family) {
  std::vector<Rule> rules;
  forEachFamily(family, [&](uint8_t one) {
    fib_rule_hdr header{};
    header.family = one;
    const unsigned group = one == AF_INET ? RTNLGRP_IPV4_RULE : RTNLGRP_IPV6_RULE;
    for (const Bytes& message :
         connection.dumpWatching(group, "list rules", {NETLINK_NAMED(RTM_GETRULE), NLM_F_REQUEST, header},
                                 netlink::Connection::Missing::isEmpty)) {
      Rule rule = decodeRule(message);
      if (rule.family != one) continue;
      if (!rule.priority) rule.priority = 0;  // the kernel leaves a zero out
      rules.push_back(std::move(rule));
    }
  });
  return rules;
}

}  // namespace tproxy::rtnetlink
