#include "bindings/js.h"

namespace tproxy::bindings {

uint32_t JsReader::word(const Packed& js, netlink::Words words) {
  if (js.isNumber()) return js.number<uint32_t>();
  const std::string_view name = js.string();
  for (const netlink::Word& word : words)
    if (name == word.name) return word.value;
  js.fail("unknown word: " + std::string(name));
}

Napi::Value JsWriter::word(Napi::Env env, uint32_t value, netlink::Words words) {
  for (const netlink::Word& word : words)
    if (word.value == value) return Napi::String::New(env, word.name);
  return Napi::Number::New(env, value);
}

Napi::Value JsWriter::flags(Napi::Env env, uint32_t value, netlink::Words words) {
  auto array = Napi::Array::New(env);
  uint32_t length = 0;
  for (const netlink::Word& word : words)
    if (value & word.value) {
      array[length++] = Napi::String::New(env, word.name);
      value &= ~word.value;
    }
  if (value != 0) array[length] = Napi::Number::New(env, value);
  return array;
}

namespace {

// Reads the alternative of a union that the object's `kind` names.
template <class Union, size_t index = 0>
Union readUnion(const Packed& js, std::string_view kind, auto kindOf) {
  if constexpr (index == std::variant_size_v<Union>) {
    js.fail("unknown kind: " + std::string(kind));
  } else {
    using T = std::variant_alternative_t<index, Union>;
    if (kind == kindOf(std::type_identity<T>())) return JsReader::object<T>(js);
    return readUnion<Union, index + 1>(js, kind, kindOf);
  }
}

}  // namespace

void JsReader::read(const Packed& js, nftables::Expression& expression, nftables::Expressed) {
  expression =
      readUnion<nftables::Expression>(js, js["kind"].string(), []<class T>(std::type_identity<T>) { return T::kind; });
}

void JsReader::read(const Packed& js, rtnetlink::LinkInfo& info, rtnetlink::LinkInfoAttribute) {
  info =
      readUnion<rtnetlink::LinkInfo>(js, js["kind"].string(), []<class T>(std::type_identity<T>) { return T::kind; });
}

void JsReader::read(const Packed& js, nftables::Object& object, netlink::Described) {
  object = readUnion<nftables::Object>(js, js["kind"].string(),
                                       []<class T>(std::type_identity<T>) { return T::messages.kind; });
}

}  // namespace tproxy::bindings
