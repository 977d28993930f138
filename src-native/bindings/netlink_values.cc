#include "bindings/netlink_values.h"

#include <algorithm>

namespace tproxy::bindings {

namespace {

constexpr std::pair<const char*, nftables::Verb> verbs[] = {
    {"add", nftables::Verb::add},      {"create", nftables::Verb::create}, {"insert", nftables::Verb::insert},
    {"delete", nftables::Verb::erase}, {"flush", nftables::Verb::flush},   {"deleteEmpty", nftables::Verb::eraseEmpty},
};

// `intervals` of NftElements in src/netlink/types.ts.
void readIntervals(const Packed& js, nftables::Elements& to) {
  if (js.isUndefined()) return;
  const auto length = js["keyLength"].number<uint32_t>();
  const auto keys = js["keys"].bytes();
  to.elements.reserve(to.elements.size() + keys.size() / length);
  uint32_t flags = 0;
  for (auto key = keys.begin(); key != keys.end(); key += length) {
    to.elements.push_back({.elementFlags = flags, .key = {key, key + length}});
    flags ^= NFT_SET_ELEM_INTERVAL_END;
  }
}

}  // namespace

rtnetlink::Verb verbArgument(const Packed& js) {
  const std::string_view wanted = js.string();
  for (const auto verb : {rtnetlink::Verb::add, rtnetlink::Verb::replace, rtnetlink::Verb::erase})
    if (wanted == rtnetlink::wordOf(verb)) return verb;
  js.fail("unknown verb: " + std::string(wanted));
}

rtnetlink::Device deviceArgument(const Packed& js) {
  rtnetlink::Device device;
  JsReader::read(js, device, rtnetlink::DeviceIndex());
  return device;
}

namespace {

decltype(rtnetlink::Change::object) linkOperation(const Packed& js) {
  const std::string_view verb = js["verb"].string();
  if (verb == "add") return JsReader::object<rtnetlink::NewLink>(js["link"]);
  const rtnetlink::Device device = deviceArgument(js["dev"]);
  if (verb == "delete") return rtnetlink::LinkDeletion{device};
  return rtnetlink::LinkChange{device, JsReader::object<rtnetlink::LinkSettings>(js["change"])};
}

decltype(rtnetlink::Change::object) changedObject(const Packed& js) {
  const std::string_view kind = js["kind"].string();
  if (kind == "link") return linkOperation(js);
  if (kind == "rule") return JsReader::object<rtnetlink::Rule>(js["rule"]);
  if (kind == "address") return JsReader::object<rtnetlink::Address>(js["address"]);
  return JsReader::object<rtnetlink::Route>(js["route"]);
}

}  // namespace

std::vector<rtnetlink::Change> changesArgument(const Packed& js) {
  const auto elements = js.elements();
  std::vector<rtnetlink::Change> changes(elements.size());
  auto next = changes.begin();
  for (const Packed& change : elements) {
    if (change["kind"].string() != "link") next->verb = verbArgument(change["verb"]);
    (next++)->object = changedObject(change);
  }
  return changes;
}

std::vector<nftables::Operation> operationsArgument(const Packed& js) {
  std::vector<nftables::Operation> operations;
  const auto packed = js.elements();
  operations.reserve(packed.size());
  for (const Packed& operation : packed) {
    const std::string_view wanted = operation["verb"].string();
    const auto* verb =
        std::find_if(std::begin(verbs), std::end(verbs), [&](const auto& one) { return wanted == one.first; });
    if (verb == std::end(verbs)) js.fail("unknown verb: " + std::string(wanted));
    const Packed object = operation["object"];
    nftables::Object& read = operations.emplace_back(nftables::Operation{verb->second}).object;
    JsReader::read(object, read, netlink::described);
    if (auto* elements = std::get_if<nftables::Elements>(&read)) readIntervals(object["intervals"], *elements);
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

nftables::BatchOptions batchOptions(const Packed& js) {
  nftables::BatchOptions options;
  options.generation = optionalMember<uint32_t>(js, "generation", netlink::be32);
  options.dryRun = optionalMember<bool>(js, "dryRun", netlink::boolean(netlink::u8)).value_or(false);
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
