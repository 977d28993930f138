// What the rule set holds: dumps of objects, and its generation.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "netlink/connection.h"
#include "nftables/object.h"

namespace tproxy::nftables {

// Only objects of which all this is true. Elements are listed of one set: family, table and set must be there.
struct Filter {
  std::optional<uint8_t> family;
  std::optional<std::string> table, chain, set, counter;
};

// T is Table, Chain, Rule, Set, NamedCounter or Elements (then there is one object, its elements in ascending order).
template <class T>
std::vector<T> list(netlink::Connection& connection, const Filter& filter);

// The one object that `key` names: a rule by its handle, what else by its name. Elements are those of the set that
// `key` has, in its order.
template <class T>
T get(netlink::Connection& connection, const T& key);
// What it asks.
template <class T>
netlink::Message encodeGet(const T& key);
// Lists counters as `list` does, and sets them to zero.
std::vector<NamedCounter> resetCounters(netlink::Connection& connection, const Filter& filter);

Generation generation(netlink::Connection& connection);
Generation decodeGeneration(ByteView message);

}  // namespace tproxy::nftables
