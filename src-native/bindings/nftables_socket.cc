// NftablesSocket of src/native.ts.
#include <memory>
#include <mutex>
#include <utility>

#include "bindings/define.h"
#include "bindings/netlink_values.h"
#include "bindings/watches.h"
#include "nftables/query.h"
#include "nftables/watch.h"

namespace tproxy::bindings {

using netlink::ByteView;
using netlink::Connection;
using When = Session::When;

namespace {

// Gathers the operations of a batch until its end, which makes an NftChange of src/netlink/types.ts of them.
class NftChanges {
 public:
  Napi::Value operator()(Napi::Env env, const Watches::Notification& notification) {
    if (notification.message.empty()) {
      operations_.clear();
      return toLost(env);
    }
    ByteView bytes = notification.message;
    const netlink::Received message = netlink::readMessage(bytes);
    try {
      if (!nftables::isGeneration(message)) {
        operations_.push_back(nftables::decodeOperation(message.whole));
        return {};
      }
      auto js = Napi::Object::New(env);
      js["kind"] = Napi::String::New(env, "batch");
      auto list = Napi::Array::New(env);
      for (const nftables::Operation& operation : std::exchange(operations_, {}))
        list[list.Length()] = operationValue(env, operation);
      js["operations"] = list;
      js["generation"] = JsWriter::object(env, nftables::decodeGeneration(message.whole));
      js["portId"] = Napi::Number::New(env, message.header.nlmsg_pid);
      return js;
    } catch (const netlink::Malformed&) {
      return {};  // an object of a kind that this package has no word for
    }
  }

 private:
  std::vector<nftables::Operation> operations_;
};

// A batch, made of its packed operations by whoever gets to it first: JavaScript's thread while others are committed, or the
// one that commits it.
class Commit {
 public:
  Commit(netlink::Bytes operations, nftables::BatchOptions options)
      : state_(new State{.operations = std::move(operations), .options = options}) {}

  void prepare() {
    std::call_once(state_->once, [this] {
      state_->batch = nftables::encodeBatch(operationsArgument(Packed(state_->operations)), state_->options);
    });
  }
  void operator()(Connection& connection) {
    prepare();
    connection.commit(state_->options.dryRun ? "check batch" : "commit batch", std::move(state_->batch));
  }

 private:
  struct State {
    const netlink::Bytes operations;
    const nftables::BatchOptions options;
    std::once_flag once = {};
    netlink::Batch batch = {};
  };
  std::unique_ptr<State> state_;
};

class NftablesSocket : public Napi::ObjectWrap<NftablesSocket> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NftablesSocket",
                       {
                           InstanceAccessor<&NftablesSocket::portId>("portId"),
                           method<&NftablesSocket::commit<When::later>>("commit"),
                           method<&NftablesSocket::commit<When::now>>("commitSync"),
                           method<&NftablesSocket::generation>("generation"),
                           method<&NftablesSocket::list>("list"),
                           method<&NftablesSocket::get>("get"),
                           method<&NftablesSocket::resetCounters>("resetCounters"),
                           method<&NftablesSocket::watch>("watch"),
                           method<&NftablesSocket::close>("close"),
                       });
  }

  explicit NftablesSocket(const Napi::CallbackInfo& info)
      : ObjectWrap(info), session_(openSession(info, NETLINK_NETFILTER)), netns_(netnsArgument(info)) {
    portId_ = session_->open()->portId();
  }

 private:
  template <Napi::Value (NftablesSocket::*function)(const Napi::CallbackInfo&)>
  Napi::Value call(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return (this->*function)(info); });
  }
  template <Napi::Value (NftablesSocket::*function)(const Napi::CallbackInfo&)>
  static Napi::ClassPropertyDescriptor<NftablesSocket> method(const char* name) {
    return InstanceMethod<&NftablesSocket::call<function>>(name);
  }

  Napi::Value portId(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), portId_); }

  template <When when>
  Napi::Value commit(const Napi::CallbackInfo& info) {
    const auto options = batchOptions(Packed(info[1]));
    return session_->transact<when>(info.Env(), Commit(copy(packed(info[0])), options));
  }

  Napi::Value generation(const Napi::CallbackInfo& info) {
    return later(info, [](Connection& c) { return nftables::generation(c); });
  }

  static nftables::Filter filterArgument(const Packed& js) {
    nftables::Filter filter;
    filter.family = optionalMember<uint8_t>(js, "family", nftables::familyOf);
    filter.table = optionalMember<std::string>(js, "table", netlink::text);
    filter.chain = optionalMember<std::string>(js, "chain", netlink::text);
    filter.set = optionalMember<std::string>(js, "set", netlink::text);
    filter.counter = optionalMember<std::string>(js, "counter", netlink::text);
    return filter;
  }
  Napi::Value list(const Napi::CallbackInfo& info) {
    return withKind(Packed(info[0]), [&]<class T>() {
      return later(info,
                   [filter = filterArgument(Packed(info[1]))](Connection& c) { return nftables::list<T>(c, filter); });
    });
  }
  Napi::Value get(const Napi::CallbackInfo& info) {
    const Packed named(info[0]);
    return withKind(named["kind"], [&]<class T>() {
      auto key = JsReader::object<T>(named, JsReader::Purpose::key);
      return later(info, [key = std::move(key)](Connection& c) { return nftables::get(c, key); });
    });
  }
  Napi::Value resetCounters(const Napi::CallbackInfo& info) {
    return later(
        info, [filter = filterArgument(Packed(info[0]))](Connection& c) { return nftables::resetCounters(c, filter); });
  }
  Napi::Value later(const Napi::CallbackInfo& info, auto work) {
    return session_->transact<When::later>(info.Env(), std::move(work));
  }

  Napi::Value watch(const Napi::CallbackInfo& info) {
    const auto table = optionalMember<std::string>(Packed(info[0]), "table", netlink::text);
    const auto begin = [&](netlink::Watcher& watcher) { return nftables::watch(watcher, netns_, table); };
    return Napi::Number::New(
        info.Env(), Watches::of(info.Env()).watch(info.Env(), begin, NftChanges(), info[1].As<Napi::Function>()));
  }

  Napi::Value close(const Napi::CallbackInfo& info) { return session_->close(info.Env()); }

  std::shared_ptr<Session> session_;
  std::string netns_;
  uint32_t portId_;
};

}  // namespace

void defineNftablesSocket(Napi::Env env, Napi::Object exports) {
  exports["NftablesSocket"] = NftablesSocket::define(env);
}

}  // namespace tproxy::bindings
