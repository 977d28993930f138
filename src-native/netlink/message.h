// Netlink messages as bytes: one class that builds them, and functions that read them without ever looking past their
// end. Nothing here knows what an attribute means.
#pragma once
#include <linux/netlink.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace tproxy::netlink {

using Bytes = std::vector<uint8_t>;
using ByteView = std::span<const uint8_t>;

// A constant of the kernel's headers together with its name, for error messages. Make it with NETLINK_NAMED.
struct Named {
  uint16_t value;
  const char* name;
};
#define NETLINK_NAMED(constant) (::tproxy::netlink::Named{static_cast<uint16_t>(constant), #constant})

// A message under construction.
class Message {
 public:
  template <class Header>
  Message(Named type, uint16_t flags, const Header& header) : request_(type.name) {
    bytes_.reserve(512);  // most need no more
    attributes_.reserve(32);
    bytes_.resize(NLMSG_HDRLEN);
    append(&header, sizeof header);
    nlmsghdr& start = this->header();
    start.nlmsg_type = type.value;
    start.nlmsg_flags = flags;
  }

  void put(Named attribute, const void* data, size_t length);

  // An attribute that holds attributes: what is put between open() and close() is inside. One that stays empty is
  // left out, unless it says something by being there. `mark` says that it is one; old messages come without.
  [[nodiscard]] size_t open(Named attribute, uint16_t mark = NLA_F_NESTED);
  void close(size_t opened, bool keepEmpty = false);
  // Bytes that are no attribute, such as a fixed header inside of one.
  void append(const void* data, size_t length);
  size_t size() const { return bytes_.size(); }
  void truncate(size_t size);

  nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(bytes_.data()); }
  const nlmsghdr& header() const { return *reinterpret_cast<const nlmsghdr*>(bytes_.data()); }
  const Bytes& bytes() const { return bytes_; }
  const char* request() const { return request_; }

  // The name of the attribute whose header is `offset` bytes into the message: what an extended ack points at.
  const char* attributeAt(size_t offset) const;

 private:
  const char* request_;
  Bytes bytes_;
  std::vector<std::pair<uint32_t, const char*>> attributes_;  // where each one begins, ascending
};

struct Attribute {
  uint16_t type;  // without the nested and byte order bits
  ByteView data;
};

// Both throw Malformed.
std::vector<Attribute> readAttributes(ByteView bytes);
struct Received {
  nlmsghdr header;
  ByteView payload;
  ByteView whole;
};
// Takes one message off the front of `bytes`.
Received readMessage(ByteView& bytes);

// The fixed header that follows nlmsghdr in every message of a family (rtmsg, nfgenmsg, ...); takes it off the front.
template <class Header>
Header readHeader(ByteView& payload);

[[noreturn]] void malformed(std::string_view what);

template <class Header>
Header readHeader(ByteView& payload) {
  if (payload.size() < NLMSG_ALIGN(sizeof(Header))) malformed("message without its fixed header");
  Header header;
  std::memcpy(&header, payload.data(), sizeof header);
  payload = payload.subspan(NLMSG_ALIGN(sizeof header));
  return header;
}

}  // namespace tproxy::netlink
