// RelayThread of src/native.ts: JavaScript values into commands, events into JavaScript values.
#include <map>
#include <memory>

#include "bindings/define.h"
#include "bindings/instance.h"
#include "bindings/socket_values.h"
#include "broker/process.h"
#include "relay/proxy_protocol.h"
#include "relay/thread.h"

namespace tproxy::bindings {

namespace {

using relay::Id;

Id idOf(const Napi::Value& value) { return static_cast<Id>(value.As<Napi::Number>().Int64Value()); }
Napi::Number idValue(Napi::Env env, Id id) { return Napi::Number::New(env, static_cast<double>(id)); }

LooseDescriptors& loose(Napi::Env env) { return env.GetInstanceData<Instance>()->loose; }

UniqueFd descriptor(const Napi::Object& options, const char* name) {
  return loose(options.Env()).remove(static_cast<int>(optionalNumber(options, name).value_or(-1)));
}

std::vector<std::byte> bytes(const Napi::Object& options, const char* name) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined()) return {};
  const auto array = value.As<Napi::Uint8Array>();
  const auto* data = reinterpret_cast<const std::byte*>(array.Data());
  return {data, data + array.ByteLength()};
}

relay::Engine engine(const Napi::Object& options) {
  const std::string name = optionalString(options, "engine");
  if (name == "copy") return relay::Engine::copy;
  return name == "uring-splice" ? relay::Engine::ringSplice : relay::Engine::splice;
}

relay::Limits limits(const Napi::Object& options) {
  const std::int64_t idle = optionalNumber(options, "idleTimeoutMs").value_or(0);
  return {.idle = idle,
          .halfClose = optionalNumber(options, "halfCloseTimeoutMs").value_or(idle),
          .keepAlive = optionalNumber(options, "keepAliveMs").value_or(0),
          .userTimeout = optionalNumber(options, "userTimeoutMs").value_or(0)};
}

relay::Upstream upstream(const Napi::Object& options) {
  return {.address = optionalString(options, "address"),
          .port = static_cast<std::uint16_t>(optionalNumber(options, "port").value_or(0)),
          .localAddress = optionalString(options, "localAddress"),
          .localPort = static_cast<std::uint16_t>(optionalNumber(options, "localPort").value_or(0)),
          .localPortOptional = optionalFlag(options, "localPortOptional"),
          .mark = optionalMark(options),
          .timeout = optionalNumber(options, "timeoutMs").value_or(0),
          .proxyProtocol = static_cast<int>(optionalNumber(options, "proxyProtocol").value_or(0))};
}

relay::DecideCommand::Kind kindOf(const std::string& kind) {
  using Kind = relay::DecideCommand::Kind;
  if (kind == "relay") return Kind::relay;
  if (kind == "socket") return Kind::socket;
  return kind == "close" ? Kind::close : Kind::reset;
}

const char* reasonText(relay::Reason reason) {
  switch (reason) {
    case relay::Reason::end:
      return "end";
    case relay::Reason::reset:
      return "reset";
    case relay::Reason::idle:
      return "idle";
    case relay::Reason::destroyed:
      return "destroyed";
    case relay::Reason::error:
      break;
  }
  return "error";
}

class RelayThread : public Napi::ObjectWrap<RelayThread> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "RelayThread",
                       {InstanceMethod<&RelayThread::guarded<&RelayThread::connect>>("connect"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::relay>>("relay"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::accept>>("accept"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::decide>>("decide"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::peek>>("peek"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::destroy>>("destroy"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::tell>>("tell"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::stopAccepting>>("stopAccepting"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::startBroker>>("startBroker"),
                        InstanceMethod<&RelayThread::guarded<&RelayThread::stopBroker>>("stopBroker"),
                        InstanceMethod<&RelayThread::stopFromJs>("stop"), InstanceMethod<&RelayThread::ref>("ref"),
                        InstanceMethod<&RelayThread::unref>("unref")});
  }

  explicit RelayThread(const Napi::CallbackInfo& info)
      : ObjectWrap(info),
        netns_(optionalString(info[0].As<Napi::Object>(), "netns")),
        thread_(netns_, optionalString(info[0].As<Napi::Object>(), "engine") == "uring",
                [this] { events_.NonBlockingCall(); }) {
    const Napi::Env env = info.Env();
    // The object lives until the function that carries its events is gone, so that no event can meet a dead object.
    Ref();
    events_ = Events::New(env, info[1].As<Napi::Function>(), "linux-tproxy", 0, 1, this,
                          [](Napi::Env, void*, RelayThread* self) { self->Unref(); });
    events_.Unref(env);
    // Hooks run in reverse order: the thread is joined before the function goes, and before counters are freed.
    napi_add_env_cleanup_hook(env, stopAtExit, this);
  }

 private:
  static void deliver(Napi::Env env, Napi::Function onEvents, RelayThread* self, void*) {
    if (env != nullptr) self->deliverTo(env, onEvents);
  }
  using Events = Napi::TypedThreadSafeFunction<RelayThread, void, deliver>;

  // No C++ exception may leave a function that JavaScript calls.
  template <Napi::Value (RelayThread::*method)(const Napi::CallbackInfo&)>
  Napi::Value guarded(const Napi::CallbackInfo& info) {
    if (stopped_) throw Napi::Error::New(info.Env(), "linux-tproxy: this relay thread was stopped");
    try {
      thread_.start();  // before a descriptor changes hands
      return (this->*method)(info);
    } catch (const socket::Error& error) {
      throw toError(info.Env(), error);
    }
  }

  Napi::Value connect(const Napi::CallbackInfo& info) {
    const Id id = thread_.nextId();
    thread_.post(relay::ConnectCommand{id, upstream(info[0].As<Napi::Object>())});
    return idValue(info.Env(), id);
  }

  Napi::Value relay(const Napi::CallbackInfo& info) {
    const auto options = info[0].As<Napi::Object>();
    const Id id = thread_.nextId();
    thread_.post(relay::RelayCommand{.id = id,
                                     .client = descriptor(options, "clientFd"),
                                     .server = descriptor(options, "serverFd"),
                                     .clientPreface = bytes(options, "clientPreface"),
                                     .serverPreface = bytes(options, "serverPreface"),
                                     .engine = engine(options),
                                     .limits = limits(options),
                                     .counters = keep(id, options.Get("counters"))});
    return idValue(info.Env(), id);
  }

  Napi::Value accept(const Napi::CallbackInfo& info) {
    const auto options = info[0].As<Napi::Object>();
    const auto to = options.Get("upstream").As<Napi::Object>();
    const Id id = thread_.nextId();
    thread_.post(relay::AcceptCommand{.id = id,
                                      .fd = descriptor(options, "fd"),
                                      .decide = optionalFlag(options, "decide"),
                                      .preconnect = optionalFlag(options, "preconnect"),
                                      .tell = optionalFlag(options, "tell"),
                                      .engine = engine(options),
                                      .limits = limits(options),
                                      .redirected = optionalFlag(options, "redirected"),
                                      .upstream = upstream(to),
                                      .fromClient = optionalString(to, "from") == "client",
                                      .clientPort = optionalFlag(to, "clientPort"),
                                      .counters = keep(id, options.Get("counters"))});
    return idValue(info.Env(), id);
  }

  Napi::Value decide(const Napi::CallbackInfo& info) {
    const Id id = idOf(info[0]);
    if (!counters_.contains(id)) return info.Env().Undefined();  // ended already
    const auto decision = info[1].As<Napi::Object>();
    thread_.post(relay::DecideCommand{.id = id,
                                      .kind = kindOf(optionalString(decision, "kind")),
                                      .upstream = upstream(decision),
                                      .engine = engine(decision),
                                      .limits = limits(decision),
                                      .counters = keep(id, info[2])});
    return info.Env().Undefined();
  }

  Napi::Value peek(const Napi::CallbackInfo& info) {
    thread_.post(relay::PeekCommand{.id = idOf(info[0]),
                                    .bytes = static_cast<std::size_t>(info[1].As<Napi::Number>().Int64Value()),
                                    .timeout = info[2].As<Napi::Number>().Int64Value()});
    return info.Env().Undefined();
  }

  Napi::Value destroy(const Napi::CallbackInfo& info) {
    thread_.post(relay::DestroyCommand{idOf(info[0])});
    return info.Env().Undefined();
  }

  Napi::Value tell(const Napi::CallbackInfo& info) {
    thread_.post(relay::TellCommand{idOf(info[0]), info[1].As<Napi::Boolean>()});
    return info.Env().Undefined();
  }

  Napi::Value stopAccepting(const Napi::CallbackInfo& info) {
    const std::int64_t drain = info[1].IsUndefined() ? 0 : info[1].As<Napi::Number>().Int64Value();
    thread_.post(relay::StopAcceptingCommand{idOf(info[0]), drain});
    return info.Env().Undefined();
  }

  Napi::Value startBroker(const Napi::CallbackInfo& info) {
    auto process = std::make_shared<broker::Process>(netns_);
    thread_.post(relay::OpenerCommand{
        [process](sa_family_t family, const auto& from, auto mark) { return process->open(family, from, mark); }});
    return info.Env().Undefined();
  }

  Napi::Value stopBroker(const Napi::CallbackInfo& info) {
    thread_.post(relay::OpenerCommand{});
    return info.Env().Undefined();
  }

  Napi::Value stopFromJs(const Napi::CallbackInfo& info) {
    napi_remove_env_cleanup_hook(info.Env(), stopAtExit, this);
    stop();
    return info.Env().Undefined();
  }

  Napi::Value ref(const Napi::CallbackInfo& info) {
    if (!stopped_) events_.Ref(info.Env());
    return info.Env().Undefined();
  }

  Napi::Value unref(const Napi::CallbackInfo& info) {
    if (!stopped_) events_.Unref(info.Env());
    return info.Env().Undefined();
  }

  static void stopAtExit(void* self) { static_cast<RelayThread*>(self)->stop(); }

  void stop() {
    if (std::exchange(stopped_, true)) return;
    thread_.stop();
    counters_.clear();
    events_.Release();
  }

  // Holds a counters array until the event that says its owner has ended is delivered.
  std::uint64_t* keep(Id id, const Napi::Value& value) {
    if (value.IsUndefined()) return nullptr;
    auto array = value.As<Napi::BigUint64Array>();
    counters_.insert_or_assign(id, Napi::Persistent(array.As<Napi::Object>()));
    return array.Data();
  }

  void deliverTo(Napi::Env env, Napi::Function onEvents) {
    std::vector<relay::Event> events = thread_.takeEvents();
    if (events.empty()) return;
    Napi::Array list = Napi::Array::New(env, events.size());
    for (std::uint32_t i = 0; i < events.size(); ++i)
      list[i] = std::visit([&](auto& event) { return toValue(env, event); }, events[i]);
    onEvents.Call({list});
  }

  static Napi::Object newEvent(Napi::Env env, const char* kind, const char* idName, Id id) {
    Napi::Object value = Napi::Object::New(env);
    value["kind"] = kind;
    value[idName] = idValue(env, id);
    return value;
  }

  static Napi::Value endpoint(Napi::Env env, const relay::Endpoint& end) {
    return endpointOf(env, end.v6, end.address, end.port);
  }

  template <typename Event>
  static Napi::Object ofServer(Napi::Env env, const char* kind, const Event& event) {
    Napi::Object value = newEvent(env, kind, "id", event.id);
    value["server"] = idValue(env, event.server);
    value["source"] = endpoint(env, event.source);
    value["originalDestination"] = endpoint(env, event.originalDestination);
    return value;
  }

  Napi::Object toValue(Napi::Env env, const relay::FlowEvent& event) {
    counters_.try_emplace(event.id);
    return ofServer(env, "flow", event);
  }
  Napi::Object toValue(Napi::Env env, const relay::RelayedEvent& event) { return ofServer(env, "relayed", event); }
  Napi::Object toValue(Napi::Env env, const relay::PeekedEvent& event) {
    Napi::Object value = newEvent(env, "peeked", "id", event.id);
    value["data"] = Napi::Buffer<std::uint8_t>::Copy(env, reinterpret_cast<const std::uint8_t*>(event.data.data()),
                                                     event.data.size());
    return value;
  }
  Napi::Object toValue(Napi::Env env, const relay::OpenedEvent& event) {
    Napi::Object value = newEvent(env, "opened", "id", event.id);
    if (event.localPortKept) value["localPortKept"] = *event.localPortKept;
    return value;
  }
  Napi::Object toValue(Napi::Env env, relay::ConnectedEvent& event) {
    Napi::Object value = newEvent(env, "connected", "id", event.id);
    value["fd"] = loose(env).add(std::move(event.fd));
    if (event.localPortKept) value["localPortKept"] = *event.localPortKept;
    return value;
  }
  Napi::Object toValue(Napi::Env env, relay::SocketEvent& event) {
    Napi::Object value = newEvent(env, "socket", "id", event.id);
    value["fd"] = loose(env).add(std::move(event.fd));
    counters_.erase(event.id);
    return value;
  }
  Napi::Object toValue(Napi::Env env, const relay::FailedEvent& event) {
    Napi::Object value = newEvent(env, "failed", "id", event.id);
    value["failure"] = failureOf(env, event.failure);
    return value;
  }
  Napi::Object toValue(Napi::Env env, const relay::EndedEvent& event) {
    Napi::Object value = newEvent(env, "ended", "id", event.id);
    value["reason"] = reasonText(event.reason);
    if (event.failure) value["failure"] = failureOf(env, *event.failure);
    value["bytesFromClient"] = Napi::BigInt::New(env, event.bytesFromClient);
    value["bytesFromServer"] = Napi::BigInt::New(env, event.bytesFromServer);
    counters_.erase(event.id);
    return value;
  }
  Napi::Object toValue(Napi::Env env, const relay::AcceptFailedEvent& event) {
    Napi::Object value = newEvent(env, "acceptFailed", "server", event.server);
    value["failure"] = failureOf(env, event.failure);
    return value;
  }
  Napi::Object toValue(Napi::Env env, const relay::ClosedEvent& event) {
    counters_.erase(event.server);
    return newEvent(env, "closed", "server", event.server);
  }

  Events events_;
  std::map<Id, Napi::ObjectReference> counters_;  // of every listener, relay and flow; empty where it has none
  bool stopped_ = false;
  std::string netns_;
  relay::Thread thread_;  // the last, so that it is joined before the rest goes
};

}  // namespace

void defineRelay(Napi::Env env, Napi::Object exports) {
  exports["RelayThread"] = RelayThread::define(env);
  exports["encodeProxyHeader"] = Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
    const auto address = [&](const Napi::Value& value) {
      const auto endpoint = value.As<Napi::Object>();
      return socket::Address(optionalString(endpoint, "address"),
                             static_cast<std::uint16_t>(optionalNumber(endpoint, "port").value_or(0)));
    };
    try {
      const std::string header =
          relay::proxyHeader(info[0].As<Napi::Number>().Int32Value(), address(info[1]), address(info[2]));
      return Napi::Buffer<char>::Copy(info.Env(), header.data(), header.size());
    } catch (const socket::Error& error) {
      throw toError(info.Env(), error);
    }
  });
  exports["hasUring"] = Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
    try {
      return Napi::Boolean::New(info.Env(), relay::Thread::hasUring());
    } catch (const socket::Error& error) {
      throw toError(info.Env(), error);
    }
  });
  exports["hasSplice"] = Napi::Function::New(
      env, [](const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), relay::Thread::hasSplice()); });
}

}  // namespace tproxy::bindings
