// Values of JavaScript as bytes, which src/pack.ts makes in one go: to read an object's members one by one through
// Node-API takes several times as long.
#pragma once
#include <napi.h>

#include <string>
#include <string_view>
#include <vector>

#include "netlink/message.h"

namespace tproxy::bindings {

// One value. Its bytes are there until JavaScript runs again. What it is not, asked for, is a TypeError.
class Packed {
 public:
  explicit Packed(Napi::Value js);

  bool isUndefined() const { return kind_ == Kind::undefined; }
  bool isNull() const { return kind_ == Kind::null; }
  bool isNumber() const { return kind_ == Kind::number; }

  bool boolean() const { return bytesOf(Kind::boolean, "a boolean")[0] != 0; }
  template <class T>
  T number() const {
    if constexpr (sizeof(T) == 8)
      return as<uint64_t>(Kind::bigint, "a bigint");
    else
      return static_cast<T>(static_cast<int64_t>(as<double>(Kind::number, "a number")));
  }
  std::string_view string() const { return textOf(bytesOf(Kind::string, "a string")); }
  netlink::ByteView bytes() const { return bytesOf(Kind::bytes, "a Uint8Array"); }
  std::vector<Packed> elements() const;
  // A member of an object; of undefined there is none.
  Packed operator[](std::string_view name) const;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  // What a value begins with (undefined: it is not there).
  enum class Kind : uint8_t { null, boolean, number, bigint, string, bytes, array, object, undefined };

  explicit Packed(Napi::Env env) : env_(env) {}
  static std::string_view textOf(netlink::ByteView bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  netlink::ByteView bytesOf(Kind kind, const char* name) const {
    if (kind_ != kind) fail(std::string("not ") + name);
    return bytes_;
  }
  template <class T>
  T as(Kind kind, const char* name) const {
    T value;
    std::memcpy(&value, bytesOf(kind, name).data(), sizeof value);
    return value;
  }
  // Both take it off the front of `rest`.
  Packed next(netlink::ByteView& rest) const;
  netlink::ByteView take(netlink::ByteView& rest, size_t size) const;
  uint32_t takeSize(netlink::ByteView& rest) const;

  Napi::Env env_;
  Kind kind_ = Kind::undefined;
  netlink::ByteView bytes_;
};

}  // namespace tproxy::bindings
