#include "bindings/packed.h"

#include <stdexcept>
#include <utility>

#include "bindings/instance.h"

namespace tproxy::bindings {

using netlink::ByteView;

ByteView packed(Napi::Value js) {
  if (js.IsUndefined()) return {};
  const auto bytes = js.Env().GetInstanceData<Instance>()->packer.Call({js}).As<Napi::Uint8Array>();
  return {bytes.Data(), bytes.ByteLength()};
}

Packed::Packed(ByteView bytes) {
  if (!bytes.empty()) *this = next(bytes);
}

void Packed::fail(const std::string& what) { throw std::invalid_argument(what); }

ByteView Packed::take(ByteView& rest, size_t size) {
  if (size > rest.size()) fail("changed while it was read");
  const ByteView taken = rest.first(size);
  rest = rest.subspan(size);
  return taken;
}

uint32_t Packed::takeSize(ByteView& rest) {
  uint32_t size;
  std::memcpy(&size, take(rest, sizeof size).data(), sizeof size);
  return size;
}

Packed Packed::next(ByteView& rest) {
  Packed value;
  value.kind_ = static_cast<Kind>(take(rest, 1)[0]);
  switch (value.kind_) {
    case Kind::null:
    case Kind::undefined:
      break;
    case Kind::boolean:
      value.bytes_ = take(rest, 1);
      break;
    case Kind::number:
    case Kind::bigint:
      value.bytes_ = take(rest, 8);
      break;
    case Kind::string:
    case Kind::bytes:
    case Kind::array:
    case Kind::object:
      value.bytes_ = take(rest, takeSize(rest));
  }
  return value;
}

std::vector<Packed> Packed::elements() const {
  std::vector<Packed> elements;
  size_t count = 0;
  for (ByteView rest = bytesOf(Kind::array, "an array"); !rest.empty(); ++count) next(rest);
  elements.reserve(count);
  for (ByteView rest = bytesOf(Kind::array, "an array"); !rest.empty();) elements.push_back(next(rest));
  return elements;
}

Packed Packed::operator[](std::string_view name) const {
  if (isUndefined()) return {};
  const ByteView members = bytesOf(Kind::object, "an object");
  for (const auto& [from, to] : {std::pair{next_, members.size()}, std::pair{size_t{0}, next_}}) {
    for (ByteView rest = members.subspan(from, to - from); !rest.empty();) {
      const std::string_view candidate = textOf(take(rest, takeSize(rest)));
      const Packed value = next(rest);
      if (candidate != name) continue;
      next_ = to - rest.size();
      return value;
    }
  }
  return {};
}

}  // namespace tproxy::bindings
