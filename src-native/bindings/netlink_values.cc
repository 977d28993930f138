#include "bindings/netlink_values.h"

#include <algorithm>

namespace tproxy::bindings {

namespace {

constexpr std::pair<const char*, nftables::Verb> verbs[] = {
    {"add", nftables::Verb::add},      {"create", nftables::Verb::create}, {"insert", nftables::Verb::insert},
    {"delete", nftables::Verb::erase}, {"flush", nftables::Verb::flush},   {"deleteEmpty", nftables::Verb::eraseEmpty},
};

// `intervals` of NftElements in src/netlink/types.ts.
void readIntervals(Napi::Value js, nftables::Elements& to) {
  if (js.IsUndefined()) return;
  const auto length = member(js, "keyLength").As<Napi::Number>().Uint32Value();
  const auto keys = member(js, "keys").As<Napi::Uint8Array>();
  to.elements.reserve(to.elements.size() + keys.ByteLength() / length);
  uint32_t flags = 0;
  for (const uint8_t *key = keys.Data(), *end = key + keys.ByteLength(); key != end; key += length) {
    to.elements.push_back({.elementFlags = flags, .key = {key, key + length}});
    flags ^= NFT_SET_ELEM_INTERVAL_END;
  }
}

}  // namespace

Napi::Value member(Napi::Value object, const char* name) {
  if (object.IsUndefined()) return object;
  return object.As<Napi::Object>()[name];
}

rtnetlink::Verb verbArgument(Napi::Value js) {
  const std::string wanted = js.As<Napi::String>();
  for (const auto verb : {rtnetlink::Verb::add, rtnetlink::Verb::replace, rtnetlink::Verb::erase})
    if (wanted == rtnetlink::wordOf(verb)) return verb;
  throw Napi::TypeError::New(js.Env(), "unknown verb: " + wanted);
}

std::vector<nftables::Operation> operationsArgument(Napi::Value js) {
  const auto array = js.As<Napi::Array>();
  std::vector<nftables::Operation> operations;
  operations.reserve(array.Length());
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::HandleScope scope(js.Env());
    const Napi::Value operation = array[i];
    const std::string wanted = member(operation, "verb").As<Napi::String>();
    const auto* verb =
        std::find_if(std::begin(verbs), std::end(verbs), [&](const auto& one) { return wanted == one.first; });
    if (verb == std::end(verbs)) throw Napi::TypeError::New(js.Env(), "unknown verb: " + wanted);
    const Napi::Value object = member(operation, "object");
    nftables::Object& read = operations.emplace_back(nftables::Operation{verb->second}).object;
    JsReader::read(object, read, netlink::described);
    if (auto* elements = std::get_if<nftables::Elements>(&read)) readIntervals(member(object, "intervals"), *elements);
  }
  return operations;
}

Napi::Object operationValue(Napi::Env env, const nftables::Operation& operation) {
  const auto* verb =
      std::find_if(std::begin(verbs), std::end(verbs), [&](const auto& one) { return one.second == operation.verb; });
  auto js = Napi::Object::New(env);
  js["verb"] = Napi::String::New(env, verb->first);
  js["object"] = JsWriter::write(env, operation.object, netlink::described);
  return js;
}

nftables::BatchOptions batchOptions(Napi::Value js) {
  nftables::BatchOptions options;
  options.generation = optionalMember<uint32_t>(js, "generation", netlink::be32);
  options.dryRun = member(js, "dryRun").ToBoolean();
  return options;
}

netlink::Bytes batchBytes(std::vector<nftables::Operation> operations, const nftables::BatchOptions& options) {
  netlink::Bytes bytes;
  for (const auto& message : nftables::encodeBatch(std::move(operations), options).messages)
    bytes.insert(bytes.end(), message.bytes().begin(), message.bytes().end());
  return bytes;
}

netlink::ByteView bytesArgument(Napi::Value js) {
  const auto bytes = js.As<Napi::Uint8Array>();
  return {bytes.Data(), bytes.ByteLength()};
}

std::string netnsArgument(const Napi::CallbackInfo& info) {
  return info[0].IsUndefined() ? "" : std::string(info[0].As<Napi::String>());
}

std::shared_ptr<Session> openSession(const Napi::CallbackInfo& info, int protocol) {
  return guarded(info.Env(), [&] {
    return std::make_shared<Session>(std::make_shared<netlink::Connection>(protocol, netnsArgument(info)));
  });
}

Napi::Object toLost(Napi::Env env) {
  auto js = Napi::Object::New(env);
  js["kind"] = Napi::String::New(env, "lost");
  return js;
}

}  // namespace tproxy::bindings
