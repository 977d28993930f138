// Several changes of policy rules, routes, links and addresses at once: `ip -batch`.
#pragma once
#include <variant>
#include <vector>

#include "netlink/connection.h"
#include "rtnetlink/address.h"
#include "rtnetlink/link.h"
#include "rtnetlink/route.h"
#include "rtnetlink/rule.h"

namespace tproxy::rtnetlink {

struct LinkChange {
  Device device;
  LinkSettings settings;
};
struct LinkDeletion {
  Device device;
};

struct Change {
  Verb verb = Verb::add;  // of links: what they are says it
  std::variant<Rule, Route, Address, NewLink, LinkChange, LinkDeletion> object = {};
};

std::vector<netlink::Message> encodeChanges(Names& names, const std::vector<Change>& changes);
// One by one, the others too where some fail: netlink::Error tells which.
void change(netlink::Connection& connection, const std::vector<Change>& changes);

}  // namespace tproxy::rtnetlink
