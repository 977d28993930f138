// What the netlink sockets share: their errors, calls in a sequence, and the functions that show the bytes they send.
#include <net/if.h>

#include <stdexcept>

#include "bindings/define.h"
#include "bindings/instance.h"
#include "bindings/netlink_values.h"
#include "bindings/socket_values.h"
#include "bindings/watches.h"
#include "errno_name.h"
#include "nftables/query.h"

namespace tproxy::bindings {

namespace {

void describeRefusal(Napi::Object js, const netlink::Refusal& refusal) {
  js["errno"] = Napi::Number::New(js.Env(), refusal.errnum);
  js["code"] = Napi::String::New(js.Env(), errnoName(refusal.errnum));
  js["request"] = Napi::String::New(js.Env(), refusal.request);
  if (refusal.attribute) js["attribute"] = Napi::String::New(js.Env(), *refusal.attribute);
  if (refusal.extack) js["extack"] = Napi::String::New(js.Env(), *refusal.extack);
}

Napi::Object netlinkFailure(Napi::Env env, const netlink::Error& error) {
  auto failure = Napi::Object::New(env);
  failure["kind"] = Napi::String::New(env, "netlink");
  failure["operation"] = Napi::String::New(env, error.operation);
  describeRefusal(failure, error.refusal);
  if (error.all.empty()) return failure;
  auto errors = Napi::Array::New(env, error.all.size());
  for (uint32_t i = 0; i < error.all.size(); ++i) {
    const Napi::HandleScope scope(env);
    auto one = Napi::Object::New(env);
    one["index"] = Napi::Number::New(env, static_cast<double>(error.all[i].index));
    describeRefusal(one, error.all[i].refusal);
    errors[i] = one;
  }
  failure["errors"] = errors;
  return failure;
}

}  // namespace

Napi::Error jsError(Napi::Env env, const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const netlink::Error& error) {
    return toError(env, netlinkFailure(env, error));
  } catch (const netlink::Malformed& error) {
    return toError(env,
                   netlinkFailure(env, {"decode", {.errnum = EBADMSG, .request = "none", .extack = error.what()}}));
  } catch (const socket::Error& error) {  // before a netlink socket was there
    return toError(env, error);
  } catch (const std::invalid_argument& error) {
    return Napi::TypeError::New(env, error.what());
  } catch (const std::exception& error) {
    return Napi::Error::New(env, error.what());
  }
}

namespace {

// Calls made while the function runs are one job. It gives an array of their promises; where that is another number
// than there are calls, some were refused before they came here, and the others are not made either.
Napi::Value sequence(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto* instance = env.GetInstanceData<Instance>();
  if (instance->sequence != nullptr) throw Napi::Error::New(env, "a sequence inside a sequence");
  const auto job = std::make_shared<Job>(env);
  instance->sequence = job.get();
  Napi::Value promises;
  try {
    promises = info[0].As<Napi::Function>().Call({});
  } catch (...) {
    instance->sequence = nullptr;
    job->discard();
    throw;
  }
  instance->sequence = nullptr;
  if (job->size() == 0) return promises;
  guarded(env, [&] {
    if (promises.As<Napi::Array>().Length() == job->size())
      job->submit();
    else
      job->discard();
  });
  return promises;
}

void unwatch(const Napi::CallbackInfo& info) { Watches::of(info.Env()).unwatch(info[0].As<Napi::Number>()); }

Napi::Value toBuffer(Napi::Env env, const netlink::Bytes& bytes) {
  return Napi::Value(env, Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size()));
}

Napi::Value encodeRule(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto rule = JsReader::object<rtnetlink::Rule>(Packed(info[1]));
    return toBuffer(info.Env(), rtnetlink::encodeRule(verbArgument(Packed(info[0])), rule).bytes());
  });
}

Napi::Value encodeRoute(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto route = JsReader::object<rtnetlink::Route>(Packed(info[1]));
    forEachDevice(route, [](rtnetlink::Device& device) {
      if (device.index == 0) device.index = ::if_nametoindex(device.name.c_str());
      if (device.index == 0)
        throw netlink::Error("get link " + device.name, {.errnum = ENODEV, .request = "RTM_GETLINK"});
    });
    return toBuffer(info.Env(), rtnetlink::encodeRoute(verbArgument(Packed(info[0])), std::move(route)).bytes());
  });
}

Napi::Value encodeAddress(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto address = JsReader::object<rtnetlink::Address>(Packed(info[1]));
    return toBuffer(info.Env(), rtnetlink::encodeAddress(verbArgument(Packed(info[0])), address).bytes());
  });
}

Napi::Value encodeRouteQuery(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto query = JsReader::object<rtnetlink::RouteQuery>(Packed(info[0]));
    return toBuffer(info.Env(), rtnetlink::encodeRouteQuery(query).bytes());
  });
}

Napi::Value encodeNewLink(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return toBuffer(info.Env(),
                    rtnetlink::encodeNewLink(JsReader::object<rtnetlink::NewLink>(Packed(info[0]))).bytes());
  });
}

Napi::Value encodeLinkChange(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return toBuffer(info.Env(), rtnetlink::encodeLinkChange({.index = info[0].As<Napi::Number>().Uint32Value()},
                                                            JsReader::object<rtnetlink::LinkSettings>(Packed(info[1])))
                                    .bytes());
  });
}

Napi::Value encodeLinkDeletion(const Napi::CallbackInfo& info) {
  return toBuffer(info.Env(),
                  rtnetlink::encodeLinkDeletion({.index = info[0].As<Napi::Number>().Uint32Value()}).bytes());
}

Napi::Value encodeBatch(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return toBuffer(info.Env(), batchBytes(operationsArgument(Packed(info[0])), batchOptions(Packed(info[1]))));
  });
}

Napi::Value encodeGet(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Packed key(info[0]);
    return withKind(key["kind"].string(), [&]<class T>() -> Napi::Value {
      return toBuffer(info.Env(), nftables::encodeGet(JsReader::object<T>(key, JsReader::Purpose::key)).bytes());
    });
  });
}

Napi::Value decodeRule(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return JsWriter::object(info.Env(), rtnetlink::decodeRule(bytesArgument(info[0]))); });
}

Napi::Value decodeRoute(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return JsWriter::object(info.Env(), rtnetlink::decodeRoute(bytesArgument(info[0]))); });
}

Napi::Value decodeAddress(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return JsWriter::object(info.Env(), rtnetlink::decodeAddress(bytesArgument(info[0]))); });
}

Napi::Value decodeNftables(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return operationValue(info.Env(), nftables::decodeOperation(bytesArgument(info[0]))); });
}

}  // namespace

void defineNetlink(Napi::Env env, Napi::Object exports) {
  exports["sequence"] = Napi::Function::New<sequence>(env);
  exports["unwatch"] = Napi::Function::New<unwatch>(env);
  exports["encodeRule"] = Napi::Function::New<encodeRule>(env);
  exports["encodeRoute"] = Napi::Function::New<encodeRoute>(env);
  exports["encodeAddress"] = Napi::Function::New<encodeAddress>(env);
  exports["encodeRouteQuery"] = Napi::Function::New<encodeRouteQuery>(env);
  exports["encodeNewLink"] = Napi::Function::New<encodeNewLink>(env);
  exports["encodeLinkChange"] = Napi::Function::New<encodeLinkChange>(env);
  exports["encodeLinkDeletion"] = Napi::Function::New<encodeLinkDeletion>(env);
  exports["encodeBatch"] = Napi::Function::New<encodeBatch>(env);
  exports["encodeGet"] = Napi::Function::New<encodeGet>(env);
  exports["decodeRule"] = Napi::Function::New<decodeRule>(env);
  exports["decodeRoute"] = Napi::Function::New<decodeRoute>(env);
  exports["decodeAddress"] = Napi::Function::New<decodeAddress>(env);
  exports["decodeNftables"] = Napi::Function::New<decodeNftables>(env);
}

}  // namespace tproxy::bindings
