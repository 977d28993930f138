#include "rtnetlink/address.h"

#include "rtnetlink/list.h"

namespace tproxy::rtnetlink {

Address decodeAddress(ByteView bytes) {
  ByteView payload = netlink::readMessage(bytes).payload;
  const auto header = netlink::readHeader<ifaddrmsg>(payload);
  Address address;
  address.family = header.ifa_family;
  address.prefixLength = header.ifa_prefixlen;
  address.scope = header.ifa_scope;
  address.linkIndex = header.ifa_index;
  netlink::decodeInto(payload, address);
  if (!address.local) address.local = address.address;
  if (!address.local) netlink::malformed("address message without an address");
  return address;
}

std::vector<Address> listAddresses(netlink::Connection& connection, std::optional<uint8_t> family) {
  std::vector<Address> addresses;
  forEachFamily(family, [&](uint8_t one) {
    const ifaddrmsg header{.ifa_family = one};
    for (const Bytes& message : unlessMissing([&] {
           return connection.dump("list addresses", {NETLINK_NAMED(RTM_GETADDR), NLM_F_REQUEST, header});
         }))
      if (Address address = decodeAddress(message); address.family == one) addresses.push_back(std::move(address));
  });
  return addresses;
}

}  // namespace tproxy::rtnetlink
