// JavaScript values of the netlink sockets into what the core takes, and back. The types are those of src/netlink/types.ts.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/js.h"
#include "bindings/transaction.h"
#include "nftables/batch.h"
#include "rtnetlink/change.h"

namespace tproxy::bindings {

template <class T>
std::optional<T> optionalMember(const Packed& object, const char* name, const auto& representation) {
  const Packed js = object[name];
  std::optional<T> value;
  if (!js.isUndefined()) JsReader::read(js, value.emplace(), representation);
  return value;
}

rtnetlink::Verb verbArgument(const Packed& js);
rtnetlink::Device deviceArgument(const Packed& js);
std::vector<rtnetlink::Change> changesArgument(const Packed& js);
std::vector<nftables::Operation> operationsArgument(const Packed& js);
Napi::Object operationValue(Napi::Env env, const nftables::Operation& operation);
// Calls it with the type of that kind of nf_tables object.
template <size_t index = 0>
auto withKind(std::string_view kind, const auto& call) -> decltype(call.template operator()<nftables::Table>()) {
  if constexpr (index == std::variant_size_v<nftables::Object>) {
    Packed::fail("unknown kind: " + std::string(kind));
  } else {
    using T = std::variant_alternative_t<index, nftables::Object>;
    if (kind != T::messages.kind) return withKind<index + 1>(kind, call);
    return call.template operator()<T>();
  }
}
nftables::BatchOptions batchOptions(const Packed& js);
netlink::Bytes batchBytes(std::vector<nftables::Operation> operations, const nftables::BatchOptions& options);
netlink::ByteView bytesArgument(Napi::Value js);

// The first argument of a socket's constructor: the path of its namespace; empty where it is the process's.
std::string netnsArgument(const Napi::CallbackInfo& info);
std::shared_ptr<Session> openSession(const Napi::CallbackInfo& info, int protocol);

// What a watch tells when notifications were lost.
Napi::Object toLost(Napi::Env env);

}  // namespace tproxy::bindings
