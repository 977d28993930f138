#include "nftables/query.h"

#include <algorithm>
#include <iterator>

#include "nftables/batch.h"

namespace tproxy::nftables {

namespace {

using netlink::Encoder;
using netlink::Message;

bool matches(const std::optional<std::string>& wanted, const std::string& name) { return !wanted || *wanted == name; }
bool matches(const Filter& filter, const Table& table) { return matches(filter.table, table.name); }
bool matches(const Filter& filter, const Chain& chain) {
  return matches(filter.table, chain.table) && matches(filter.chain, chain.name);
}
bool matches(const Filter& filter, const Rule& rule) {
  return matches(filter.table, rule.table) && matches(filter.chain, rule.chain);
}
bool matches(const Filter& filter, const Set& set) {
  return matches(filter.table, set.table) && matches(filter.set, set.name);
}
bool matches(const Filter& filter, const NamedCounter& counter) {
  return matches(filter.table, counter.table) && matches(filter.counter, counter.name);
}
bool matches(const Filter&, const Elements&) { return true; }

// What the kernel filters by itself where much may be there; `matches` has the last word.
template <class T>
void writeFilter(Message& request, const Filter& filter) {
  Encoder encoder(request);
  if constexpr (Is<T, Rule>) {
    encoder.write(NETLINK_NAMED(NFTA_RULE_TABLE), filter.table, text);
    if (filter.table) encoder.write(NETLINK_NAMED(NFTA_RULE_CHAIN), filter.chain, text);
  } else if constexpr (Is<T, Elements>) {
    encoder.write(NETLINK_NAMED(NFTA_SET_ELEM_LIST_TABLE), filter.table, text);
    encoder.write(NETLINK_NAMED(NFTA_SET_ELEM_LIST_SET), filter.set, text);
  } else if constexpr (Is<T, NamedCounter>) {
    encoder.write(NETLINK_NAMED(NFTA_OBJ_TABLE), filter.table, text);
    encoder.constant(NETLINK_NAMED(NFTA_OBJ_TYPE), uint32_t{NFT_OBJECT_COUNTER}, be32);
  }
}

// The parts of a set that did not fit one message.
void append(std::vector<Elements>& all, Elements part) {
  if (all.empty()) return all.push_back(std::move(part));
  auto& elements = all.front().elements;
  elements.insert(elements.end(), std::make_move_iterator(part.elements.begin()),
                  std::make_move_iterator(part.elements.end()));
}
template <class T>
void append(std::vector<T>& all, T object) {
  // Listed, the position is the handle of the rule before; the order says that already, and in a rule that is added
  // again it would mean something else.
  if constexpr (Is<T, Rule>) object.position.reset();
  all.push_back(std::move(object));
}

// The kernel lists hashes in any order and intervals backwards. Where one interval ends and the next begins the end is
// first.
void sort(std::vector<Element>& elements) {
  std::sort(elements.begin(), elements.end(), [](const Element& a, const Element& b) {
    const int order = std::memcmp(a.key.data(), b.key.data(), std::min(a.key.size(), b.key.size()));
    if (order != 0) return order < 0;
    return (a.elementFlags & NFT_SET_ELEM_INTERVAL_END) > (b.elementFlags & NFT_SET_ELEM_INTERVAL_END);
  });
}

template <class T>
std::vector<T> dump(netlink::Connection& connection, const char* verb, Named type, const Filter& filter) {
  Message request = newMessage(type, 0, filter.family.value_or(NFPROTO_UNSPEC));
  writeFilter<T>(request, filter);
  std::vector<T> all;
  for (const Bytes& message : connection.dump(std::string(verb) + " " + T::messages.kind, std::move(request))) {
    Operation found = decodeOperation(message);
    auto* object = std::get_if<T>(&found.object);
    if (object && (!filter.family || object->family == *filter.family) && matches(filter, *object))
      append(all, std::move(*object));
  }
  return all;
}

template <class T>
Message requestFor(Named type, const T& key) {
  Message request = newMessage(type, 0, key.family);
  Encoder encoder(request, Encoder::Purpose::erase);  // which sends what names the object, and no more
  describe(encoder, key);
  return request;
}

template <class T>
void appendAnswer(std::vector<T>& all, const Bytes& message) {
  Operation found = decodeOperation(message);
  auto* object = std::get_if<T>(&found.object);
  if (!object) netlink::malformed("an answer about something else");
  append(all, std::move(*object));
}

template <class T>
T getOne(netlink::Connection& connection, const char* verb, Named type, const T& key) {
  std::vector<T> one;
  appendAnswer(one, connection.get(std::string(verb) + " " + T::messages.kind, requestFor(type, key)));
  return std::move(one.front());
}

}  // namespace

template <class T>
std::vector<T> list(netlink::Connection& connection, const Filter& filter) {
  std::vector<T> all = dump<T>(connection, "list", T::messages.get, filter);
  if constexpr (Is<T, Elements>) {
    // An empty set is told by no message, or by one without elements.
    if (all.empty())
      all.push_back({.family = filter.family.value(), .table = filter.table.value(), .set = filter.set.value()});
    sort(all.front().elements);
  }
  return all;
}
template std::vector<Table> list(netlink::Connection&, const Filter&);
template std::vector<Chain> list(netlink::Connection&, const Filter&);
template std::vector<Rule> list(netlink::Connection&, const Filter&);
template std::vector<Set> list(netlink::Connection&, const Filter&);
template std::vector<Elements> list(netlink::Connection&, const Filter&);
template std::vector<NamedCounter> list(netlink::Connection&, const Filter&);

template <class T>
Message encodeGet(const T& key) {
  return requestFor(T::messages.get, key);
}
template Message encodeGet(const Table&);
template Message encodeGet(const Chain&);
template Message encodeGet(const Rule&);
template Message encodeGet(const Set&);
template Message encodeGet(const Elements&);
template Message encodeGet(const NamedCounter&);

template <class T>
T get(netlink::Connection& connection, const T& key) {
  return getOne(connection, "get", T::messages.get, key);
}
template Table get(netlink::Connection&, const Table&);
template Chain get(netlink::Connection&, const Chain&);
template Rule get(netlink::Connection&, const Rule&);
template Set get(netlink::Connection&, const Set&);
template NamedCounter get(netlink::Connection&, const NamedCounter&);
template <>
Elements get(netlink::Connection& connection, const Elements& key) {
  std::vector<Elements> found{{.family = key.family, .table = key.table, .set = key.set}};
  for (const Bytes& message : connection.getEach("get elements", requestFor(Elements::messages.get, key)))
    appendAnswer(found, message);
  return std::move(found.front());
}

std::vector<NamedCounter> resetCounters(netlink::Connection& connection, const Filter& filter) {
  constexpr Named type = NETLINK_NAMED(NFT_MSG_GETOBJ_RESET);
  // The kernel does not look at names when it lists: it would reset others too.
  if (filter.counter)
    return {
        getOne(connection, "reset", type,
               NamedCounter{.family = filter.family.value(), .table = filter.table.value(), .name = *filter.counter})};
  return dump<NamedCounter>(connection, "reset", type, filter);
}

Generation generation(netlink::Connection& connection) {
  return decodeGeneration(
      connection.get("get generation", newMessage(NETLINK_NAMED(NFT_MSG_GETGEN), 0, NFPROTO_UNSPEC)));
}

Generation decodeGeneration(ByteView bytes) {
  ByteView payload = netlink::readMessage(bytes).payload;
  netlink::readHeader<nfgenmsg>(payload);
  Generation generation;
  netlink::decodeInto(payload, generation);
  return generation;
}

}  // namespace tproxy::nftables
