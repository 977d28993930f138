// Several changes of policy rules, routes and addresses at once: `ip -batch`.
#pragma once
#include <variant>
#include <vector>

#include "netlink/connection.h"
#include "rtnetlink/address.h"
#include "rtnetlink/route.h"
#include "rtnetlink/rule.h"

namespace tproxy::rtnetlink {

struct Change {
  Verb verb = Verb::add;
  std::variant<Rule, Route, Address> object = {};
};

// Asks for the numbers of the interfaces that routes name.
std::vector<netlink::Message> encodeChanges(netlink::Connection& connection, const std::vector<Change>& changes);
// One by one, the others too where some fail: netlink::Error tells which.
void change(netlink::Connection& connection, const std::vector<Change>& changes);

}  // namespace tproxy::rtnetlink
