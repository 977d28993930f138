#include <fcntl.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "bindings/define.h"
#include "bindings/instance.h"
#include "bindings/socket_values.h"
#include "errno_name.h"
#include "socket/netns.h"
#include "socket/transparent.h"

namespace tproxy::bindings {

Napi::Object failureOf(Napi::Env env, const socket::Error& error) {
  Napi::Object failure = Napi::Object::New(env);
  failure["kind"] = "socket";
  failure["errno"] = error.errnum();
  failure["code"] = errnoName(error.errnum());
  failure["syscall"] = error.syscall;
  if (!error.address.empty()) failure["address"] = error.address;
  if (error.port >= 0) failure["port"] = error.port;
  return failure;
}

Napi::Error toError(Napi::Env env, const socket::Error& error) { return toError(env, failureOf(env, error)); }

Napi::Object endpointOf(Napi::Env env, bool v6, const std::string& address, std::uint16_t port) {
  Napi::Object endpoint = Napi::Object::New(env);
  endpoint["family"] = v6 ? "ipv6" : "ipv4";
  endpoint["address"] = address;
  endpoint["port"] = port;
  return endpoint;
}

std::string optionalString(const Napi::Object& options, const char* name) {
  const Napi::Value value = options.Get(name);
  return value.IsUndefined() ? std::string() : value.As<Napi::String>().Utf8Value();
}

std::optional<std::int64_t> optionalNumber(const Napi::Object& options, const char* name) {
  const Napi::Value value = options.Get(name);
  return value.IsUndefined() ? std::nullopt : std::optional(value.As<Napi::Number>().Int64Value());
}

std::optional<std::uint32_t> optionalMark(const Napi::Object& options) {
  const auto mark = optionalNumber(options, "mark");
  return mark ? std::optional(static_cast<std::uint32_t>(*mark)) : std::nullopt;
}

bool optionalFlag(const Napi::Object& options, const char* name) { return options.Get(name).ToBoolean().Value(); }

namespace {

LooseDescriptors& loose(Napi::Env env) { return env.GetInstanceData<Instance>()->loose; }

int descriptor(const Napi::CallbackInfo& info) { return info[0].As<Napi::Number>().Int32Value(); }

Napi::Value openListener(const Napi::CallbackInfo& info) {
  const auto options = info[0].As<Napi::Object>();
  const std::string address = optionalString(options, "address");
  const auto port = static_cast<std::uint16_t>(*optionalNumber(options, "port"));
  socket::ListenOptions listen{.address = {},
                               .backlog = static_cast<int>(*optionalNumber(options, "backlog")),
                               .transparent = optionalFlag(options, "transparent"),
                               .v6Only = optionalFlag(options, "v6Only"),
                               .reusePort = optionalFlag(options, "reusePort"),
                               .mark = optionalMark(options)};
  UniqueFd fd;
  inNetns(optionalString(options, "netns"), [&] {
    listen.address = socket::Address(address, port);
    fd = socket::listen(listen);
  });
  return Napi::Number::New(info.Env(), loose(info.Env()).add(std::move(fd)));
}

Napi::Value duplicate(const Napi::CallbackInfo& info) {
  UniqueFd copy(fcntl(descriptor(info), F_DUPFD_CLOEXEC, 0));
  if (!copy) throw socket::Error(errno, "fcntl F_DUPFD_CLOEXEC");
  return Napi::Number::New(info.Env(), loose(info.Env()).add(std::move(copy)));
}

Napi::Value closeDescriptor(const Napi::CallbackInfo& info) {
  loose(info.Env()).remove(descriptor(info));
  return info.Env().Undefined();
}

Napi::Value disown(const Napi::CallbackInfo& info) {
  loose(info.Env()).remove(descriptor(info)).release();
  return info.Env().Undefined();
}

Napi::Value endpoint(const Napi::CallbackInfo& info, const socket::Address& address) {
  return endpointOf(info.Env(), address.family() == AF_INET6, address.text(descriptor(info)), address.port());
}

Napi::Value socketAddress(const Napi::CallbackInfo& info) {
  return endpoint(info, socket::localAddress(descriptor(info)));
}

Napi::Value originalDestination(const Napi::CallbackInfo& info) {
  const auto [address, fromConntrack] = socket::originalDestination(descriptor(info));
  auto value = endpoint(info, address).As<Napi::Object>();
  value["from"] = fromConntrack ? "conntrack" : "sockname";
  return value;
}

Napi::Value inheritListener(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), socket::inheritListener(descriptor(info)));
}

Napi::Value readFiles(const Napi::CallbackInfo& info) {
  const auto paths = info[0].As<Napi::Array>();
  std::vector<std::string> names;
  for (uint32_t at = 0; at < paths.Length(); at++) names.push_back(paths.Get(at).As<Napi::String>());
  std::vector<std::optional<std::string>> texts;
  inNetns(info[1].IsUndefined() ? "" : std::string(info[1].As<Napi::String>()), [&] {
    for (const std::string& name : names) {
      std::ifstream file(name);
      std::ostringstream text;
      text << file.rdbuf();
      texts.push_back(file ? std::optional(text.str()) : std::nullopt);
    }
  });
  Napi::Array read = Napi::Array::New(info.Env(), texts.size());
  for (uint32_t at = 0; at < texts.size(); at++)
    if (texts[at]) read[at] = *texts[at];
  return read;
}

// No C++ exception may leave a function that JavaScript calls.
template <Napi::Value (*function)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return function(info);
  } catch (const socket::Error& error) {
    throw toError(info.Env(), error);
  } catch (const std::system_error& error) {
    throw Napi::Error::New(info.Env(), error.what());
  }
}

}  // namespace

void defineSocket(Napi::Env env, Napi::Object exports) {
  exports["openListener"] = Napi::Function::New<guarded<openListener>>(env);
  exports["duplicate"] = Napi::Function::New<guarded<duplicate>>(env);
  exports["closeDescriptor"] = Napi::Function::New<guarded<closeDescriptor>>(env);
  exports["disown"] = Napi::Function::New<guarded<disown>>(env);
  exports["socketAddress"] = Napi::Function::New<guarded<socketAddress>>(env);
  exports["originalDestination"] = Napi::Function::New<guarded<originalDestination>>(env);
  exports["readFiles"] = Napi::Function::New<guarded<readFiles>>(env);
  exports["inheritListener"] = Napi::Function::New<guarded<inheritListener>>(env);
}

}  // namespace tproxy::bindings
