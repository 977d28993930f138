// Interfaces: `ip link`. linux/if_link.h
#pragma once
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>

#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "netlink/connection.h"
#include "netlink/describe.h"
#include "unique_fd.h"

namespace tproxy::rtnetlink {

using netlink::Bytes;
using netlink::ByteView;
using netlink::Is;
using netlink::Named;
using netlink::Word;

// An interface in a message: a number there, a name or a number in JavaScript. Who encodes has found the number of the
// name, who lists has found the name of the number.
struct Device {
  uint32_t index = 0;
  std::string name;
};
struct DeviceIndex {};
inline void put(netlink::Encoder& encode, Named attribute, const Device& device, DeviceIndex) {
  put(encode, attribute, device.index, netlink::host32);
}
inline void get(ByteView data, Device& device, DeviceIndex) { get(data, device.index, netlink::host32); }

// The representation of a link layer address: bytes, `02:00:00:00:00:01` in JavaScript.
struct Mac {};
inline constexpr Mac mac;
std::string formatMac(ByteView address);
Bytes parseMac(const std::string& text);  // throws std::invalid_argument
inline void put(netlink::Encoder& encode, Named attribute, const Bytes& address, Mac) {
  put(encode, attribute, address, netlink::blob);
}
inline void get(ByteView data, Bytes& address, Mac) { get(data, address, netlink::blob); }

// A network namespace to go to: the id of a process that is in it, or a path. Who encodes a path has opened it.
struct Netns {
  std::string path;
  uint32_t processId = 0;
  int descriptor = -1;
};
struct NetnsAttribute {};
inline void put(netlink::Encoder& encode, Named attribute, const Netns& netns, NetnsAttribute) {
  if (netns.path.empty())
    put(encode, NETLINK_NAMED(IFLA_NET_NS_PID), netns.processId, netlink::host32);
  else
    put(encode, attribute, netns.descriptor, netlink::host32);
}

// ---- what a link is told --------------------------------------------------------------------------------------------

// What both ends of a veth pair can be told, and every other link. What is not given stays as it is.
struct LinkSettings {
  uint32_t index = 0;  // of a new one: 0 is any that is free
  std::optional<bool> up;
  std::optional<Bytes> address;
  std::optional<uint32_t> mtu;
  std::optional<Device> master, lower;  // index 0: none
  std::optional<Netns> netns;
  std::optional<std::string> name;
};
void describe(auto& visit, Is<LinkSettings> auto& link) {
  using namespace netlink;
  visit.header("index", link.index, zeroAbsent(host32));
  visit.header("up", link.up, boolean(host32));
  visit("address", NETLINK_NAMED(IFLA_ADDRESS), link.address, mac);
  visit("mtu", NETLINK_NAMED(IFLA_MTU), link.mtu, host32);
  visit("master", NETLINK_NAMED(IFLA_MASTER), link.master, DeviceIndex());
  visit("netns", NETLINK_NAMED(IFLA_NET_NS_FD), link.netns, NetnsAttribute());
  visit("link", NETLINK_NAMED(IFLA_LINK), link.lower, DeviceIndex());
  visit("name", NETLINK_NAMED(IFLA_IFNAME), link.name, text);
}
ifinfomsg headerOf(const LinkSettings& link);

// ---- kinds of links -------------------------------------------------------------------------------------------------

// The other end of a veth pair, which has a fixed header of its own in its attribute.
struct Peer {};
inline void put(netlink::Encoder& encode, Named attribute, const LinkSettings& peer, Peer) {
  const size_t opened = encode.message().open(attribute, 0);
  const ifinfomsg header = headerOf(peer);
  encode.message().append(&header, sizeof header);
  describe(encode, peer);
  encode.message().close(opened);
}
struct Veth {
  static constexpr const char* kind = "veth";
  std::optional<LinkSettings> peer;  // which the kernel tells by IFLA_LINK
};
void describe(auto& visit, Is<Veth> auto& veth) {
  visit.writeOnly("peer", NETLINK_NAMED(VETH_INFO_PEER), veth.peer, Peer());
}

struct Bridge {
  static constexpr const char* kind = "bridge";
  std::optional<uint32_t> forwardDelay, helloTime, maxAge, ageingTime;  // hundredths of a second
  std::optional<uint32_t> stpState;
  std::optional<uint16_t> priority;
  std::optional<bool> vlanFiltering, multicastSnooping;
};
void describe(auto& visit, Is<Bridge> auto& bridge) {
  using namespace netlink;
  visit("forwardDelay", NETLINK_NAMED(IFLA_BR_FORWARD_DELAY), bridge.forwardDelay, host32);
  visit("helloTime", NETLINK_NAMED(IFLA_BR_HELLO_TIME), bridge.helloTime, host32);
  visit("maxAge", NETLINK_NAMED(IFLA_BR_MAX_AGE), bridge.maxAge, host32);
  visit("ageingTime", NETLINK_NAMED(IFLA_BR_AGEING_TIME), bridge.ageingTime, host32);
  visit("stpState", NETLINK_NAMED(IFLA_BR_STP_STATE), bridge.stpState, host32);
  visit("priority", NETLINK_NAMED(IFLA_BR_PRIORITY), bridge.priority, host16);
  visit("vlanFiltering", NETLINK_NAMED(IFLA_BR_VLAN_FILTERING), bridge.vlanFiltering, boolean(u8));
  visit("mcastSnooping", NETLINK_NAMED(IFLA_BR_MCAST_SNOOPING), bridge.multicastSnooping, boolean(u8));
}

inline constexpr Word vlanProtocols[] = {{"802.1Q", ETH_P_8021Q}, {"802.1ad", ETH_P_8021AD}};
struct Vlan {
  static constexpr const char* kind = "vlan";
  std::optional<uint16_t> protocol;
  uint16_t id = 0;
};
void describe(auto& visit, Is<Vlan> auto& vlan) {
  using namespace netlink;
  visit("protocol", NETLINK_NAMED(IFLA_VLAN_PROTOCOL), vlan.protocol, enumeration(be16, vlanProtocols));
  visit("id", NETLINK_NAMED(IFLA_VLAN_ID), vlan.id, host16);
}

inline constexpr Word macvlanModes[] = {
    {"private", MACVLAN_MODE_PRIVATE},   {"vepa", MACVLAN_MODE_VEPA},     {"bridge", MACVLAN_MODE_BRIDGE},
    {"passthru", MACVLAN_MODE_PASSTHRU}, {"source", MACVLAN_MODE_SOURCE},
};
struct Macvlan {
  static constexpr const char* kind = "macvlan";
  std::optional<uint32_t> mode;
};
void describe(auto& visit, Is<Macvlan> auto& macvlan) {
  visit("mode", NETLINK_NAMED(IFLA_MACVLAN_MODE), macvlan.mode, enumeration(netlink::host32, macvlanModes));
}

struct Dummy {
  static constexpr const char* kind = "dummy";
};
void describe(auto&, Is<Dummy> auto&) {}
struct Ifb {
  static constexpr const char* kind = "ifb";
};
void describe(auto&, Is<Ifb> auto&) {}

// A kind that is not above, and its IFLA_INFO_DATA as the kernel has it.
struct OtherKind {
  static constexpr const char* kind = "unknown";
  std::string name;
  Bytes data;
};
void describe(auto& visit, Is<OtherKind> auto& other) {
  visit.header("name", other.name, netlink::text);
  visit.header("data", other.data, netlink::zeroAbsent(netlink::blob));
}

using LinkInfo = std::variant<Veth, Bridge, Vlan, Macvlan, Dummy, Ifb, OtherKind>;
// The representation: IFLA_INFO_KIND and IFLA_INFO_DATA.
struct LinkInfoAttribute {};
void put(netlink::Encoder& encode, Named attribute, const LinkInfo& info, LinkInfoAttribute);
void get(ByteView data, LinkInfo& info, LinkInfoAttribute);

struct NewLink {
  LinkSettings settings;
  LinkInfo info;
};
void describe(auto& visit, Is<NewLink> auto& link) {
  describe(visit, link.settings);
  visit("linkInfo", NETLINK_NAMED(IFLA_LINKINFO), link.info, LinkInfoAttribute());
}

// ---- what there is --------------------------------------------------------------------------------------------------

struct Link {
  uint32_t index = 0, flags = 0;
  std::string name;
  std::optional<std::vector<std::string>> altNames;
  std::optional<uint32_t> mtu, master, lower;
  std::optional<int32_t> lowerNetns;
  std::optional<Bytes> address;
  std::optional<LinkInfo> info;
};
void describe(auto& visit, Is<Link> auto& link) {
  using namespace netlink;
  visit.header("index", link.index, host32);
  visit("name", NETLINK_NAMED(IFLA_IFNAME), link.name, text);
  visit("altNames", NETLINK_NAMED(IFLA_PROP_LIST), link.altNames, list(NETLINK_NAMED(IFLA_ALT_IFNAME), text));
  visit.header("flags", link.flags, host32);
  visit("address", NETLINK_NAMED(IFLA_ADDRESS), link.address, mac);
  visit("mtu", NETLINK_NAMED(IFLA_MTU), link.mtu, host32);
  visit("master", NETLINK_NAMED(IFLA_MASTER), link.master, host32);
  visit("link", NETLINK_NAMED(IFLA_LINK), link.lower, host32);
  visit("linkNetnsId", NETLINK_NAMED(IFLA_LINK_NETNSID), link.lowerNetns, host32);
  visit("linkInfo", NETLINK_NAMED(IFLA_LINKINFO), link.info, LinkInfoAttribute());
}

Link decodeLink(ByteView message);
std::vector<Link> listLinks(netlink::Connection& connection);
// Throw netlink::Error ENODEV when there is no such interface.
Link getLink(netlink::Connection& connection, const Device& device);
uint32_t linkIndex(netlink::Connection& connection, const std::string& name);

// Finds the numbers of interfaces that are known by name, and opens namespaces: they stay open as long as it lives.
class Names {
 public:
  explicit Names(netlink::Connection& connection) : connection_(connection) {}

  // Throw netlink::Error ENODEV when there is no such interface.
  void resolve(Device& device);
  void resolve(std::optional<Device>& device);
  void resolve(LinkSettings& link);
  // From now on its name means it, if it has a number already.
  void resolve(NewLink& link);

 private:
  netlink::Connection& connection_;
  std::unordered_map<std::string, uint32_t> indexes_;
  std::vector<UniqueFd> namespaces_;
};

// Names must have been resolved.
netlink::Message encodeNewLink(const NewLink& link);
netlink::Message encodeLinkChange(const Device& device, LinkSettings change);
netlink::Message encodeLinkDeletion(const Device& device);

void addLink(netlink::Connection& connection, NewLink link);
void setLink(netlink::Connection& connection, Device device, LinkSettings change);
void deleteLink(netlink::Connection& connection, Device device);

}  // namespace tproxy::rtnetlink
