// NftablesSocket of src/native.ts.
#include <memory>
#include <utility>

#include "bindings/define.h"
#include "bindings/netlink_values.h"
#include "bindings/preparation.h"
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

// The work of a `commit` (Session::transact).
class Commit {
 public:
  explicit Commit(std::shared_ptr<Preparation> preparation) : preparation_(std::move(preparation)) {}

  void prepare() noexcept { preparation_->begin(); }
  void operator()(Connection& connection) {
    connection.commit(preparation_->options().dryRun ? "check batch" : "commit batch", preparation_->take());
  }

 private:
  std::shared_ptr<Preparation> preparation_;
};

using Prepared = Napi::External<std::shared_ptr<Preparation>>;

// Of operations what `commit` takes in their place, being made on another thread from now on.
Napi::Value prepare(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto preparation = std::make_shared<Preparation>(copy(packed(info[0])), nftables::BatchOptions());
  Executor::of(env).suggest([preparation] { preparation->begin(); });
  return Prepared::New(env, new std::shared_ptr<Preparation>(preparation),
                       [](Napi::Env, std::shared_ptr<Preparation>* held) { delete held; });
}

std::shared_ptr<Preparation> preparationOf(Napi::Value operations, const nftables::BatchOptions& options) {
  if (!operations.IsExternal()) return std::make_shared<Preparation>(copy(packed(operations)), options);
  const std::shared_ptr<Preparation>& prepared = *operations.As<Prepared>().Data();
  if (!options.generation && !options.dryRun) return prepared;
  return std::make_shared<Preparation>(prepared->operations(), options);
}

class NftablesSocket : public GuardedWrap<NftablesSocket> {
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
      : GuardedWrap(info), session_(openSession(info, NETLINK_NETFILTER)), netns_(netnsArgument(info)) {
    portId_ = session_->open()->portId();
  }

 private:
  Napi::Value portId(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), portId_); }

  template <When when>
  Napi::Value commit(const Napi::CallbackInfo& info) {
    const auto options = batchOptions(Packed(info[1]));
    return session_->transact<when>(info.Env(), Commit(preparationOf(info[0], options)));
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
    return withKind(std::string(info[0].As<Napi::String>()), [&]<class T>() {
      return later(info,
                   [filter = filterArgument(Packed(info[1]))](Connection& c) { return nftables::list<T>(c, filter); });
    });
  }
  Napi::Value get(const Napi::CallbackInfo& info) {
    const Packed named(info[0]);
    return withKind(named["kind"].string(), [&]<class T>() {
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
  exports["prepare"] = Napi::Function::New<prepare>(env);
}

}  // namespace tproxy::bindings
