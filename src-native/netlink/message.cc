#include "netlink/message.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "netlink/error.h"

namespace tproxy::netlink {

void malformed(std::string_view what) { throw Malformed("malformed netlink message: " + std::string(what)); }

void Message::append(const void* data, size_t length) {
  const size_t start = bytes_.size();
  bytes_.resize(start + NLMSG_ALIGN(length));  // padding is zero
  if (length > 0) std::memcpy(bytes_.data() + start, data, length);
  header().nlmsg_len = static_cast<uint32_t>(bytes_.size());
}

void Message::put(Named attribute, const void* data, size_t length) {
  const nlattr header{.nla_len = static_cast<uint16_t>(NLA_HDRLEN + length), .nla_type = attribute.value};
  if (NLA_HDRLEN + length > UINT16_MAX)
    throw Error("encode", {.errnum = EMSGSIZE, .request = request_, .attribute = attribute.name});
  attributes_.emplace_back(static_cast<uint32_t>(bytes_.size()), attribute.name);
  append(&header, sizeof header);
  append(data, length);
}

size_t Message::open(Named attribute, uint16_t mark) {
  const size_t opened = bytes_.size();
  put({static_cast<uint16_t>(attribute.value | mark), attribute.name}, nullptr, 0);
  return opened;
}

void Message::close(size_t opened, bool keepEmpty) {
  const size_t length = bytes_.size() - opened;
  if (length == NLA_HDRLEN && !keepEmpty) return truncate(opened);
  if (length > UINT16_MAX)
    throw Error("encode", {.errnum = EMSGSIZE, .request = request_, .attribute = attributeAt(opened)});
  const auto nlaLen = static_cast<uint16_t>(length);
  std::memcpy(bytes_.data() + opened + offsetof(nlattr, nla_len), &nlaLen, sizeof nlaLen);
}

void Message::truncate(size_t size) {
  bytes_.resize(size);
  header().nlmsg_len = static_cast<uint32_t>(size);
  while (!attributes_.empty() && attributes_.back().first >= size) attributes_.pop_back();
}

const char* Message::attributeAt(size_t offset) const {
  const auto found = std::lower_bound(attributes_.begin(), attributes_.end(), offset,
                                      [](const auto& attribute, size_t wanted) { return attribute.first < wanted; });
  return found != attributes_.end() && found->first == offset ? found->second : nullptr;
}

std::vector<Attribute> readAttributes(ByteView bytes) {
  std::vector<Attribute> attributes;
  while (!bytes.empty()) {
    nlattr header;
    if (bytes.size() < sizeof header) malformed("attribute header cut off");
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.nla_len < sizeof header || header.nla_len > bytes.size()) malformed("attribute length out of range");
    attributes.push_back({static_cast<uint16_t>(header.nla_type & NLA_TYPE_MASK),
                          bytes.subspan(sizeof header, header.nla_len - sizeof header)});
    bytes = bytes.subspan(std::min<size_t>(NLA_ALIGN(header.nla_len), bytes.size()));
  }
  return attributes;
}

Received readMessage(ByteView& bytes) {
  Received message;
  if (bytes.size() < sizeof message.header) malformed("header cut off");
  std::memcpy(&message.header, bytes.data(), sizeof message.header);
  const uint32_t length = message.header.nlmsg_len;
  if (length < NLMSG_HDRLEN || length > bytes.size()) malformed("length out of range");
  message.whole = bytes.first(length);
  message.payload = message.whole.subspan(NLMSG_HDRLEN);
  bytes = bytes.subspan(std::min<size_t>(NLMSG_ALIGN(length), bytes.size()));
  return message;
}

}  // namespace tproxy::netlink
