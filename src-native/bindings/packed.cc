#include "bindings/packed.h"

#include "bindings/instance.h"

namespace tproxy::bindings {

using netlink::ByteView;

Packed::Packed(Napi::Value js) : env_(js.Env()) {
  if (js.IsUndefined()) return;
  const auto packed = env_.GetInstanceData<Instance>()->packer.Call({js}).As<Napi::Uint8Array>();
  ByteView rest{packed.Data(), packed.ByteLength()};
  *this = next(rest);
}

void Packed::fail(const std::string& what) const { throw Napi::TypeError::New(env_, what); }

ByteView Packed::take(ByteView& rest, size_t size) const {
  if (size > rest.size()) fail("changed while it was read");
  const ByteView taken = rest.first(size);
  rest = rest.subspan(size);
  return taken;
}

uint32_t Packed::takeSize(ByteView& rest) const {
  uint32_t size;
  std::memcpy(&size, take(rest, sizeof size).data(), sizeof size);
  return size;
}

Packed Packed::next(ByteView& rest) const {
  Packed value(env_);
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
  for (ByteView rest = bytesOf(Kind::array, "an array"); !rest.empty();) elements.push_back(next(rest));
  return elements;
}

Packed Packed::operator[](std::string_view name) const {
  if (isUndefined()) return *this;
  for (ByteView rest = bytesOf(Kind::object, "an object"); !rest.empty();) {
    const std::string_view candidate = textOf(take(rest, takeSize(rest)));
    const Packed value = next(rest);
    if (candidate == name) return value;
  }
  return Packed(env_);
}

}  // namespace tproxy::bindings
