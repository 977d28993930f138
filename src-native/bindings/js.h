// The two visitors of netlink/describe.h that JavaScript needs: JsReader fills a struct from an object, JsWriter makes
// an object of a struct. What is read was checked in TypeScript; a wrong type is still an exception, never a crash.
#pragma once
#include <napi.h>

#include <string>
#include <string_view>
#include <vector>

#include "bindings/packed.h"
#include "netlink/describe.h"
#include "nftables/object.h"
#include "rtnetlink/address.h"
#include "rtnetlink/link.h"
#include "rtnetlink/route.h"
#include "rtnetlink/rule.h"

namespace tproxy::bindings {

using netlink::Bytes;
using netlink::Named;

// ---- JavaScript -> struct -----------------------------------------------------------------------

class JsReader {
 public:
  // Only what names an object, or all of it.
  enum class Purpose { whole, key };

  explicit JsReader(const Packed& object, Purpose purpose = Purpose::whole) : object_(object), purpose_(purpose) {}

  template <class T>
  static T object(const Packed& js, Purpose purpose = Purpose::whole) {
    T value;
    JsReader reader(js, purpose);
    describe(reader, value);
    return value;
  }

  template <class T, class Representation>
  void operator()(std::string_view name, Named, T& value, const Representation& representation) {
    if (purpose_ == Purpose::whole) readMember(name, value, representation);
  }
  void key(std::string_view name, Named, auto& value, const auto& representation) {
    readMember(name, value, representation);
  }
  void handle(std::string_view name, Named, auto& value, const auto& representation) {
    readMember(name, value, representation);
  }
  void readOnly(const char*, Named, const auto&, const auto&) {}
  void writeOnly(std::string_view name, Named attribute, auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void header(std::string_view name, auto& value, const auto& representation) {
    readMember(name, value, representation);
  }
  void wireOnly(Named, const auto&, const auto&) {}
  void constant(Named, auto, const auto&) {}
  void nest(Named, auto inside) { inside(*this); }
  void group(std::string_view name, auto inside) {
    const Packed js = object_[name];
    if (js.isUndefined()) return;
    JsReader reader(js);
    inside(reader);
  }

  // One overload for each representation.
  template <class T, class Int, std::endian order>
  static void read(const Packed& js, T& value, netlink::Number<Int, order>) {
    value = js.number<T>();
  }
  static void read(const Packed& js, std::string& value, netlink::Text) { value = js.string(); }
  static void read(const Packed& js, Bytes& value, netlink::Blob) {
    const auto bytes = js.bytes();
    value.assign(bytes.begin(), bytes.end());
  }
  template <class T, class Number>
  static void read(const Packed& js, T& value, const netlink::Enumeration<Number>& representation) {
    value = static_cast<T>(word(js, representation.words));
  }
  template <class T, class Number>
  static void read(const Packed& js, T& value, const netlink::Flags<Number>& representation) {
    value = 0;
    for (const Packed& each : js.elements()) value |= static_cast<T>(word(each, representation.words));
  }
  template <class Number>
  static void read(const Packed& js, bool& value, const netlink::Boolean<Number>&) {
    value = js.boolean();
  }
  template <class Number>
  static void read(const Packed& js, bool& value, const netlink::Flag<Number>&) {
    value = js.boolean();
  }
  template <class Representation>
  static void read(const Packed& js, auto& value, const netlink::Zero<Representation>& zero) {
    read(js, value, zero.representation);
  }
  template <class Representation>
  static void read(const Packed& js, auto& value, const netlink::Nested<Representation>& representation) {
    read(js, value, representation.representation);
  }
  template <class T>
  static void read(const Packed& js, T& value, netlink::Described) {
    value = object<T>(js);
  }
  template <class T, class Representation>
  static void read(const Packed& js, std::vector<T>& values, const netlink::List<Representation>& representation) {
    const auto elements = js.elements();
    values.reserve(elements.size());
    for (const Packed& each : elements) read(each, values.emplace_back(), representation.representation);
  }
  static void read(const Packed& js, nftables::Expression& expression, nftables::Expressed);
  static void read(const Packed& js, nftables::Object& object, netlink::Described);
  static void read(const Packed& js, Bytes& value, rtnetlink::Ip) {
    value = rtnetlink::parseIp(std::string(js.string()));
  }
  static void read(const Packed& js, rtnetlink::Prefix& prefix, rtnetlink::PrefixText) {
    prefix = rtnetlink::parsePrefix(std::string(js.string()));
  }
  static void read(const Packed& js, uint32_t& value, rtnetlink::LargeTable) { value = js.number<uint32_t>(); }
  template <class KernelRange>
  static void read(const Packed& js, KernelRange& range, rtnetlink::Range<KernelRange>) {
    range.start = js["start"].number<decltype(range.start)>();
    range.end = js["end"].number<decltype(range.end)>();
  }
  static void read(const Packed& js, rtnetlink::Device& device, rtnetlink::DeviceIndex) {
    if (js.isNumber())
      device.index = js.number<uint32_t>();
    else if (!js.isNull())  // none
      device.name = js.string();
  }
  static void read(const Packed& js, Bytes& value, rtnetlink::Mac) {
    value = rtnetlink::parseMac(std::string(js.string()));
  }
  static void read(const Packed& js, rtnetlink::Netns& netns, rtnetlink::NetnsAttribute) {
    if (js.isNumber())
      netns.processId = js.number<uint32_t>();
    else
      netns.path = js.string();
  }
  static void read(const Packed& js, rtnetlink::LinkSettings& peer, rtnetlink::Peer) {
    peer = object<rtnetlink::LinkSettings>(js);
  }
  static void read(const Packed& js, rtnetlink::LinkInfo& info, rtnetlink::LinkInfoAttribute);
  static void read(const Packed& js, std::vector<rtnetlink::NextHop>& hops, rtnetlink::NextHops) {
    read(js, hops, netlink::list({}, netlink::described));
  }

 private:
  template <class T, class Representation>
  void readMember(std::string_view name, T& value, const Representation& representation) {
    const Packed js = object_[name];
    if (js.isUndefined()) {
      using netlink::mayBeAbsent;
      if (netlink::isOptional<T> || mayBeAbsent(representation)) return;
      object_.fail(std::string(name) + " is missing");
    }
    if constexpr (netlink::isOptional<T>)
      read(js, value.emplace(), representation);
    else
      read(js, value, representation);
  }
  static uint32_t word(const Packed& js, netlink::Words words);

  const Packed object_;
  const Purpose purpose_;
};

// ---- struct -> JavaScript -----------------------------------------------------------------------

class JsWriter {
 public:
  explicit JsWriter(Napi::Env env) : env_(env), object_(Napi::Object::New(env)) {}

  template <class T>
  static Napi::Value object(Napi::Env env, const T& value) {
    JsWriter writer(env);
    if constexpr (requires { T::messages; }) writer.set("kind", Napi::String::New(env, T::messages.kind));
    if constexpr (requires { T::kind; }) writer.set("kind", Napi::String::New(env, T::kind));
    describe(writer, value);
    return writer.object_;
  }

  template <class T, class Representation>
  void operator()(const char* name, Named, const T& value, const Representation& representation) {
    if constexpr (netlink::isOptional<T>) {
      if (value) set(name, write(env_, *value, representation));
    } else if (!leftOut(value, representation)) {
      set(name, write(env_, value, representation));
    }
  }
  void key(const char* name, Named attribute, const auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void handle(const char* name, Named attribute, const auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void readOnly(const char* name, Named attribute, const auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void writeOnly(const char*, Named, const auto&, const auto&) {}
  void header(const char* name, const auto& value, const auto& representation) {
    (*this)(name, {}, value, representation);
  }
  void wireOnly(Named, const auto&, const auto&) {}
  void constant(Named, auto, const auto&) {}
  void nest(Named, auto inside) { inside(*this); }
  void group(const char* name, auto inside) {
    JsWriter writer(env_);
    inside(writer);
    if (!writer.empty_) set(name, writer.object_);
  }

  // One overload for each representation.
  template <class T, class Int, std::endian order>
  static Napi::Value write(Napi::Env env, T value, netlink::Number<Int, order>) {
    if constexpr (sizeof(T) == 8)
      return Napi::BigInt::New(env, value);
    else
      return Napi::Number::New(env, value);
  }
  static Napi::Value write(Napi::Env env, const std::string& value, netlink::Text) {
    return Napi::String::New(env, value);
  }
  static Napi::Value write(Napi::Env env, const Bytes& value, netlink::Blob) {
    auto bytes = Napi::Uint8Array::New(env, value.size());
    if (!value.empty()) std::memcpy(bytes.Data(), value.data(), value.size());
    return Napi::Value(env, bytes);
  }
  template <class Number>
  static Napi::Value write(Napi::Env env, uint32_t value, const netlink::Enumeration<Number>& representation) {
    return word(env, value, representation.words);
  }
  template <class Number>
  static Napi::Value write(Napi::Env env, uint32_t value, const netlink::Flags<Number>& representation) {
    return flags(env, value, representation.words);
  }
  template <class Number>
  static Napi::Value write(Napi::Env env, bool value, const netlink::Boolean<Number>&) {
    return Napi::Boolean::New(env, value);
  }
  template <class Number>
  static Napi::Value write(Napi::Env env, bool value, const netlink::Flag<Number>&) {
    return Napi::Boolean::New(env, value);
  }
  template <class Representation>
  static Napi::Value write(Napi::Env env, const auto& value, const netlink::Zero<Representation>& zero) {
    return write(env, value, zero.representation);
  }
  template <class Representation>
  static Napi::Value write(Napi::Env env, const auto& value, const netlink::Nested<Representation>& representation) {
    return write(env, value, representation.representation);
  }
  template <class T>
  static Napi::Value write(Napi::Env env, const T& value, netlink::Described) {
    return object(env, value);
  }
  template <class T, class Representation>
  static Napi::Value write(Napi::Env env, const std::vector<T>& values,
                           const netlink::List<Representation>& representation) {
    auto array = Napi::Array::New(env, values.size());
    for (uint32_t i = 0; i < values.size(); ++i) {
      const Napi::HandleScope scope(env);
      array[i] = write(env, values[i], representation.representation);
    }
    return array;
  }
  static Napi::Value write(Napi::Env env, const nftables::Expression& expression, nftables::Expressed) {
    return std::visit([&](const auto& one) { return object(env, one); }, expression);
  }
  static Napi::Value write(Napi::Env env, const nftables::Object& any, netlink::Described) {
    return std::visit([&](const auto& one) { return object(env, one); }, any);
  }
  static Napi::Value write(Napi::Env env, const Bytes& value, rtnetlink::Ip) {
    return Napi::String::New(env, rtnetlink::formatIp(value));
  }
  static Napi::Value write(Napi::Env env, const rtnetlink::Prefix& prefix, rtnetlink::PrefixText) {
    return Napi::String::New(env, rtnetlink::formatPrefix(prefix));
  }
  static Napi::Value write(Napi::Env env, uint32_t value, rtnetlink::LargeTable) {
    return Napi::Number::New(env, value);
  }
  template <class KernelRange>
  static Napi::Value write(Napi::Env env, const KernelRange& range, rtnetlink::Range<KernelRange>) {
    auto js = Napi::Object::New(env);
    js["start"] = Napi::Number::New(env, range.start);
    js["end"] = Napi::Number::New(env, range.end);
    return js;
  }
  static Napi::Value write(Napi::Env env, const rtnetlink::Device& device, rtnetlink::DeviceIndex) {
    if (device.name.empty()) return Napi::Number::New(env, device.index);
    return Napi::String::New(env, device.name);
  }
  static Napi::Value write(Napi::Env env, const std::vector<rtnetlink::NextHop>& hops, rtnetlink::NextHops) {
    return write(env, hops, netlink::list({}, netlink::described));
  }
  static Napi::Value write(Napi::Env env, const Bytes& value, rtnetlink::Mac) {
    return Napi::String::New(env, rtnetlink::formatMac(value));
  }
  static Napi::Value write(Napi::Env env, const rtnetlink::LinkInfo& info, rtnetlink::LinkInfoAttribute) {
    return std::visit([&](const auto& one) { return object(env, one); }, info);
  }

 private:
  void set(const char* name, Napi::Value value) {
    object_[name] = value;
    empty_ = false;
  }

  template <class T, class Representation>
  static bool leftOut(const T&, const Representation&) {
    return false;
  }
  template <class T, class Representation>
  static bool leftOut(const T& value, const netlink::Zero<Representation>& zero) {
    return !zero.inJs && netlink::isZero(value);
  }
  template <class Number>
  static bool leftOut(const bool& value, const netlink::Flag<Number>&) {
    return !value;
  }
  static bool leftOut(const rtnetlink::Prefix& prefix, const rtnetlink::PrefixText& representation) {
    return prefix.length == 0 && !representation.alwaysInJs;
  }

  static Napi::Value word(Napi::Env env, uint32_t value, netlink::Words words);
  static Napi::Value flags(Napi::Env env, uint32_t value, netlink::Words words);

  Napi::Env env_;
  Napi::Object object_;
  bool empty_ = true;
};

}  // namespace tproxy::bindings
