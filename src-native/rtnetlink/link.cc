#include "rtnetlink/link.h"

#include <net/if.h>

#include <charconv>
#include <stdexcept>

#include "rtnetlink/list.h"
#include "socket/netns.h"

namespace tproxy::rtnetlink {

using netlink::Encoder;
using netlink::Message;

std::string formatMac(ByteView address) {
  std::string text;
  for (const uint8_t byte : address) {
    constexpr const char* digits = "0123456789abcdef";
    if (!text.empty()) text += ':';
    text += {digits[byte >> 4], digits[byte & 0xf]};
  }
  return text;
}

Bytes parseMac(const std::string& text) {
  Bytes address;
  for (size_t at = 0; at < text.size() || address.empty(); at += 3) {
    const char* byte = text.data() + at;
    const char* end = text.data() + std::min(at + 2, text.size());
    const auto [stop, error] = std::from_chars(byte, end, address.emplace_back(), 16);
    if (error != std::errc() || stop != byte + 2 || (*stop != ':' && *stop != '\0'))
      throw std::invalid_argument("not a link layer address: " + text);
  }
  return address;
}

// ---- messages -------------------------------------------------------------------------------------------------------

ifinfomsg headerOf(const LinkSettings& link) {
  ifinfomsg header{.ifi_family = AF_UNSPEC};
  header.ifi_index = static_cast<int>(link.index);
  header.ifi_change = link.up ? IFF_UP : 0;
  header.ifi_flags = link.up.value_or(false) ? IFF_UP : 0;
  return header;
}

// Attributes of links are older than the mark of those that hold others.
void put(Encoder& encode, Named attribute, const LinkInfo& info, LinkInfoAttribute) {
  Message& message = encode.message();
  const size_t opened = message.open(attribute, 0);
  std::visit(
      [&]<class Kind>(const Kind& kind) {
        if constexpr (std::is_same_v<Kind, OtherKind>) {
          encode.write(NETLINK_NAMED(IFLA_INFO_KIND), kind.name, netlink::bareText);
          encode.write(NETLINK_NAMED(IFLA_INFO_DATA), kind.data, netlink::zeroAbsent(netlink::blob));
        } else {
          encode.write(NETLINK_NAMED(IFLA_INFO_KIND), std::string(Kind::kind), netlink::bareText);
          const size_t data = message.open(NETLINK_NAMED(IFLA_INFO_DATA), 0);
          describe(encode, kind);
          message.close(data);
        }
      },
      info);
  message.close(opened);
}

namespace {

// Tries the alternatives from `index` on.
template <size_t index = 0>
LinkInfo decodeInfo(const std::string& name, const Bytes& data) {
  using Kind = std::variant_alternative_t<index, LinkInfo>;
  if constexpr (std::is_same_v<Kind, OtherKind>) {
    return OtherKind{name, data};
  } else {
    if (name == Kind::kind) {
      Kind kind;
      netlink::Decoder decoder(data);
      describe(decoder, kind);
      if (!decoder.missing) return kind;
    }
    return decodeInfo<index + 1>(name, data);
  }
}

}  // namespace

void get(ByteView attributes, LinkInfo& info, LinkInfoAttribute) {
  std::string name;
  Bytes data;
  netlink::Decoder decoder(attributes);
  decoder("kind", NETLINK_NAMED(IFLA_INFO_KIND), name, netlink::zeroAbsent(netlink::text));
  decoder("data", NETLINK_NAMED(IFLA_INFO_DATA), data, netlink::zeroAbsent(netlink::blob));
  info = decodeInfo(name, data);
}

Message encodeNewLink(const NewLink& link) {
  Message message(NETLINK_NAMED(RTM_NEWLINK), NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                  headerOf(link.settings));
  Encoder encoder(message);
  describe(encoder, link);
  return message;
}

Message encodeLinkChange(const Device& device, LinkSettings change) {
  change.index = device.index;
  Message message(NETLINK_NAMED(RTM_NEWLINK), NLM_F_REQUEST | NLM_F_ACK, headerOf(change));
  Encoder encoder(message);
  describe(encoder, change);
  return message;
}

Message encodeLinkDeletion(const Device& device) {
  return {NETLINK_NAMED(RTM_DELLINK), NLM_F_REQUEST | NLM_F_ACK, headerOf({.index = device.index})};
}

Link decodeLink(ByteView bytes) {
  ByteView payload = netlink::readMessage(bytes).payload;
  const auto header = netlink::readHeader<ifinfomsg>(payload);
  Link link;
  link.index = static_cast<uint32_t>(header.ifi_index);
  link.flags = header.ifi_flags;
  netlink::decodeInto(payload, link);
  // A port of a bridge has an attribute that tells this only.
  if (const auto* other = link.info ? std::get_if<OtherKind>(&*link.info) : nullptr; other && other->name.empty())
    link.info.reset();
  return link;
}

// ---- transactions ---------------------------------------------------------------------------------------------------

std::vector<Link> listLinks(netlink::Connection& connection) {
  Message request(NETLINK_NAMED(RTM_GETLINK), NLM_F_REQUEST, ifinfomsg{.ifi_family = AF_UNSPEC});
  Encoder(request).write(NETLINK_NAMED(IFLA_EXT_MASK), uint32_t{RTEXT_FILTER_SKIP_STATS}, netlink::host32);
  std::vector<Link> links;
  for (const auto& message : connection.dump("list links", std::move(request))) links.push_back(decodeLink(message));
  return links;
}

Link getLink(netlink::Connection& connection, const Device& device) {
  Message request(NETLINK_NAMED(RTM_GETLINK), NLM_F_REQUEST, headerOf({.index = device.index}));
  if (device.index == 0) Encoder(request).write(NETLINK_NAMED(IFLA_IFNAME), device.name, netlink::text);
  const std::string& said = device.index == 0 ? device.name : std::to_string(device.index);
  return decodeLink(connection.get("get link " + said, std::move(request)));
}

uint32_t linkIndex(netlink::Connection& connection, const std::string& name) {
  return getLink(connection, {.name = name}).index;
}

void Names::resolve(Device& device) {
  if (device.index != 0 || device.name.empty()) return;
  uint32_t& index = indexes_[device.name];
  if (index == 0) index = linkIndex(connection_, device.name);
  device.index = index;
}

void Names::resolve(std::optional<Device>& device) {
  if (device) resolve(*device);
}

void Names::resolve(LinkSettings& link) {
  resolve(link.master);
  resolve(link.lower);
  if (link.netns && !link.netns->path.empty())
    link.netns->descriptor = namespaces_.emplace_back(openNetns(link.netns->path)).get();
}

void Names::resolve(NewLink& link) {
  resolve(link.settings);
  if (auto* veth = std::get_if<Veth>(&link.info); veth && veth->peer) resolve(*veth->peer);
  if (link.settings.index != 0 && link.settings.name) indexes_[*link.settings.name] = link.settings.index;
}

void addLink(netlink::Connection& connection, NewLink link) {
  Names names(connection);
  names.resolve(link);
  connection.execute("add link " + link.settings.name.value_or(""), encodeNewLink(link));
}

void setLink(netlink::Connection& connection, Device device, LinkSettings change) {
  Names names(connection);
  names.resolve(device);
  names.resolve(change);
  connection.execute("set link", encodeLinkChange(device, std::move(change)));
}

void deleteLink(netlink::Connection& connection, Device device) {
  Names(connection).resolve(device);
  connection.execute("delete link", encodeLinkDeletion(device));
}

}  // namespace tproxy::rtnetlink
