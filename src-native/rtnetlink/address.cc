#include "rtnetlink/address.h"

#include "rtnetlink/list.h"

namespace tproxy::rtnetlink {

netlink::Message encodeAddress(Verb verb, Address address) {
  const bool add = verb != Verb::erase;
  address.address = address.peer ? address.peer : address.local;
  const ifaddrmsg header{.ifa_family = address.family,
                         .ifa_prefixlen = address.prefixLength,
                         .ifa_flags = static_cast<uint8_t>(address.addressFlags),
                         .ifa_scope = address.scope,
                         .ifa_index = address.linkIndex};
  netlink::Message message(add ? NETLINK_NAMED(RTM_NEWADDR) : NETLINK_NAMED(RTM_DELADDR), flagsOf(verb), header);
  netlink::Encoder encoder(message);
  describe(encoder, address);
  return message;
}

void changeAddress(netlink::Connection& connection, Verb verb, Address address) {
  connection.execute(wordOf(verb) + std::string(" address"), encodeAddress(verb, std::move(address)));
}

Address decodeAddress(ByteView bytes) {
  ByteView payload = netlink::readMessage(bytes).payload;
  const auto header = netlink::readHeader<ifaddrmsg>(payload);
  Address address;
  address.family = header.ifa_family;
  address.prefixLength = header.ifa_prefixlen;
  address.scope = header.ifa_scope;
  address.linkIndex = header.ifa_index;
  address.addressFlags = header.ifa_flags;  // a kernel older than IFA_FLAGS has no others
  netlink::decodeInto(payload, address);
  if (!address.local) address.local = address.address;
  if (address.address != address.local) address.peer = address.address;
  if (!address.local) netlink::malformed("address message without an address");
  return address;
}

std::vector<Address> listAddresses(netlink::Connection& connection, std::optional<uint8_t> family) {
  std::vector<Address> addresses;
  forEachFamily(family, [&](uint8_t one) {
    const ifaddrmsg header{.ifa_family = one};
    for (const Bytes& message : connection.dump("list addresses", {NETLINK_NAMED(RTM_GETADDR), NLM_F_REQUEST, header},
                                                netlink::Connection::Missing::isEmpty))
      if (Address address = decodeAddress(message); address.family == one) addresses.push_back(std::move(address));
  });
  return addresses;
}

}  // namespace tproxy::rtnetlink
