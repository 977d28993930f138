// Values of JavaScript as bytes, which src/pack.ts makes in one go: to read an object's members one by one through
// Node-API takes several times as long, and cannot be done on another thread.
#pragma once
#include <napi.h>

#include <string>
#include <string_view>
#include <vector>

#include "netlink/message.h"

namespace tproxy::bindings {

// The bytes of a value. They are there until JavaScript runs again: copied they can be read on another thread.
netlink::ByteView packed(Napi::Value js);
inline netlink::Bytes copy(netlink::ByteView bytes) { return {bytes.begin(), bytes.end()}; }

// One value. What it is not, asked for, is a std::invalid_argument.
class Packed {
 public:
  explicit Packed(Napi::Value js) : Packed(packed(js)) {}
  explicit Packed(netlink::ByteView bytes);  // none: undefined

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
  // A member of an object; of undefined there is none. Fastest where they are asked for in the order in which they come.
  Packed operator[](std::string_view name) const;

  [[noreturn]] static void fail(const std::string& what);

 private:
  // What a value begins with (undefined: it is not there).
  enum class Kind : uint8_t { null, boolean, number, bigint, string, bytes, array, object, undefined };

  Packed() = default;
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
  // All of them take it off the front of `rest`.
  static Packed next(netlink::ByteView& rest);
  static netlink::ByteView take(netlink::ByteView& rest, size_t size);
  static uint32_t takeSize(netlink::ByteView& rest);

  Kind kind_ = Kind::undefined;
  netlink::ByteView bytes_;
  mutable size_t next_ = 0;  // where the member begins that comes behind the one asked for last
};

}  // namespace tproxy::bindings
