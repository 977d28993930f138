// RouteSocket, NftablesSocket and the functions that show the bytes they send.
#include <net/if.h>

#include <algorithm>
#include <stdexcept>

#include "bindings/define.h"
#include "bindings/guard.h"
#include "bindings/instance.h"
#include "bindings/socket_values.h"
#include "bindings/transaction.h"
#include "bindings/watches.h"
#include "errno_name.h"
#include "nftables/batch.h"
#include "nftables/query.h"
#include "nftables/watch.h"
#include "rtnetlink/change.h"
#include "rtnetlink/watch.h"

namespace tproxy::bindings {

using netlink::ByteView;
using netlink::Connection;
using When = Session::When;

// ---- errors ---------------------------------------------------------------------------------------------------------

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

// ---- arguments ------------------------------------------------------------------------------------------------------

Napi::Value member(Napi::Value object, const char* name) {
  if (object.IsUndefined()) return object;
  return object.As<Napi::Object>()[name];
}

template <class T>
std::optional<T> optionalMember(Napi::Value object, const char* name, const auto& representation) {
  const Napi::Value js = member(object, name);
  std::optional<T> value;
  if (!js.IsUndefined()) JsReader::read(js, value.emplace(), representation);
  return value;
}

std::optional<uint8_t> familyArgument(Napi::Value js) {
  std::optional<uint8_t> family;
  if (!js.IsUndefined()) JsReader::read(js, family.emplace(), rtnetlink::familyOf);
  return family;
}

rtnetlink::Device deviceArgument(Napi::Value js) {
  rtnetlink::Device device;
  JsReader::read(js, device, rtnetlink::DeviceIndex());
  return device;
}

rtnetlink::Verb verbArgument(Napi::Value js) {
  const std::string wanted = js.As<Napi::String>();
  for (const auto verb : {rtnetlink::Verb::add, rtnetlink::Verb::replace, rtnetlink::Verb::erase})
    if (wanted == rtnetlink::wordOf(verb)) return verb;
  throw Napi::TypeError::New(js.Env(), "unknown verb: " + wanted);
}

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

ByteView bytesArgument(Napi::Value js) {
  const auto bytes = js.As<Napi::Uint8Array>();
  return {bytes.Data(), bytes.ByteLength()};
}

std::string netnsArgument(const Napi::CallbackInfo& info) {
  return info[0].IsUndefined() ? "" : std::string(info[0].As<Napi::String>());
}

std::shared_ptr<Session> openSession(const Napi::CallbackInfo& info, int protocol) {
  return guarded(info.Env(), [&] {
    return std::make_shared<Session>(std::make_shared<Connection>(protocol, netnsArgument(info)));
  });
}

std::vector<rtnetlink::Change> changesArgument(Napi::Value js) {
  const auto array = js.As<Napi::Array>();
  std::vector<rtnetlink::Change> changes(array.Length());
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::HandleScope scope(js.Env());
    const Napi::Value change = array[i];
    changes[i].verb = verbArgument(member(change, "verb"));
    const std::string kind = member(change, "kind").As<Napi::String>();
    const Napi::Value object = member(change, kind.c_str());
    if (kind == "rule")
      changes[i].object = JsReader::object<rtnetlink::Rule>(object);
    else if (kind == "address")
      changes[i].object = JsReader::object<rtnetlink::Address>(object);
    else
      changes[i].object = JsReader::object<rtnetlink::Route>(object);
  }
  return changes;
}

// ---- notifications ------------------------------------------------------------------------------

Napi::Object toLost(Napi::Env env) {
  auto js = Napi::Object::New(env);
  js["kind"] = Napi::String::New(env, "lost");
  return js;
}

// A RouteChange of src/netlink/types.ts. What cannot be read is lost.
Napi::Value routeChange(Napi::Env env, const Watches::Notification& notification) {
  if (notification.message.empty()) return toLost(env);
  ByteView bytes = notification.message;
  const netlink::Received message = netlink::readMessage(bytes);
  auto js = Napi::Object::New(env);
  const auto describe = [&](const char* verb, const char* kind, const auto& object) {
    js["kind"] = Napi::String::New(env, kind);
    js["verb"] = Napi::String::New(env, verb);
    js[kind] = JsWriter::object(env, object);
  };
  try {
    switch (message.header.nlmsg_type) {
      case RTM_NEWRULE:
      case RTM_DELRULE:
        describe(message.header.nlmsg_type == RTM_NEWRULE ? "add" : "delete", "rule",
                 rtnetlink::decodeRule(message.whole));
        break;
      case RTM_NEWROUTE:
      case RTM_DELROUTE:
        describe(message.header.nlmsg_type == RTM_NEWROUTE ? "add" : "delete", "route",
                 rtnetlink::decodeRoute(message.whole));
        break;
      case RTM_NEWADDR:
      case RTM_DELADDR:
        describe(message.header.nlmsg_type == RTM_NEWADDR ? "add" : "delete", "address",
                 rtnetlink::decodeAddress(message.whole));
        break;
      default:
        describe(message.header.nlmsg_type == RTM_NEWLINK ? "add" : "delete", "link",
                 rtnetlink::decodeLink(message.whole));
    }
  } catch (const netlink::Malformed&) {
    return toLost(env);
  }
  js["portId"] = Napi::Number::New(env, message.header.nlmsg_pid);
  if (!notification.processName.empty()) js["processName"] = Napi::String::New(env, notification.processName);
  return js;
}

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

// ---- rtnetlink ----------------------------------------------------------------------------------

class RouteSocket : public Napi::ObjectWrap<RouteSocket> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "RouteSocket",
                       {
                           InstanceMethod<&RouteSocket::commit<When::later>>("commit"),
                           InstanceMethod<&RouteSocket::commit<When::now>>("commitSync"),
                           InstanceMethod<&RouteSocket::rule<Verb::add>>("ruleAdd"),
                           InstanceMethod<&RouteSocket::rule<Verb::erase>>("ruleDelete"),
                           InstanceMethod<&RouteSocket::rule<Verb::erase, When::now>>("ruleDeleteSync"),
                           InstanceMethod<&RouteSocket::ruleList>("ruleList"),
                           InstanceMethod<&RouteSocket::route<Verb::add>>("routeAdd"),
                           InstanceMethod<&RouteSocket::route<Verb::replace>>("routeReplace"),
                           InstanceMethod<&RouteSocket::route<Verb::erase>>("routeDelete"),
                           InstanceMethod<&RouteSocket::route<Verb::erase, When::now>>("routeDeleteSync"),
                           InstanceMethod<&RouteSocket::routeGet>("routeGet"),
                           InstanceMethod<&RouteSocket::routeList>("routeList"),
                           InstanceMethod<&RouteSocket::linkList>("linkList"),
                           InstanceMethod<&RouteSocket::linkGet>("linkGet"),
                           InstanceMethod<&RouteSocket::linkSet>("linkSet"),
                           InstanceMethod<&RouteSocket::address<Verb::add>>("addressAdd"),
                           InstanceMethod<&RouteSocket::address<Verb::replace>>("addressReplace"),
                           InstanceMethod<&RouteSocket::address<Verb::erase>>("addressDelete"),
                           InstanceMethod<&RouteSocket::addressList>("addressList"),
                           InstanceAccessor<&RouteSocket::portId>("portId"),
                           InstanceMethod<&RouteSocket::guard>("guard"),
                           InstanceMethod<&RouteSocket::watch>("watch"),
                           InstanceMethod<&RouteSocket::close>("close"),
                       });
  }

  explicit RouteSocket(const Napi::CallbackInfo& info)
      : ObjectWrap(info), session_(openSession(info, NETLINK_ROUTE)), netns_(netnsArgument(info)) {
    portId_ = session_->open()->portId();
  }

 private:
  using Verb = rtnetlink::Verb;

  template <When when = When::later>
  Napi::Value transact(const Napi::CallbackInfo& info, auto work) {
    return session_->transact<when>(info.Env(), std::move(work));
  }
  template <class T>
  static T argument(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return JsReader::object<T>(info[0]); });
  }

  template <When when>
  Napi::Value commit(const Napi::CallbackInfo& info) {
    auto changes = guarded(info.Env(), [&] { return changesArgument(info[0]); });
    return transact<when>(info, [changes = std::move(changes)](Connection& c) { rtnetlink::change(c, changes); });
  }
  template <Verb verb, When when = When::later>
  Napi::Value rule(const Napi::CallbackInfo& info) {
    return transact<when>(info, [rule = argument<rtnetlink::Rule>(info)](Connection& c) { changeRule(c, verb, rule); });
  }
  Napi::Value ruleList(const Napi::CallbackInfo& info) {
    return transact(info,
                    [family = familyArgument(info[0])](Connection& c) { return rtnetlink::listRules(c, family); });
  }
  template <Verb verb, When when = When::later>
  Napi::Value route(const Napi::CallbackInfo& info) {
    return transact<when>(info,
                          [route = argument<rtnetlink::Route>(info)](Connection& c) { changeRoute(c, verb, route); });
  }
  Napi::Value routeGet(const Napi::CallbackInfo& info) {
    return transact(
        info, [query = argument<rtnetlink::RouteQuery>(info)](Connection& c) { return rtnetlink::getRoute(c, query); });
  }
  Napi::Value routeList(const Napi::CallbackInfo& info) {
    rtnetlink::RouteFilter filter;
    filter.family = optionalMember<uint8_t>(info[0], "family", rtnetlink::familyOf);
    filter.table = optionalMember<uint32_t>(info[0], "table", netlink::host32);
    return transact(info, [filter](Connection& c) { return listRoutes(c, filter); });
  }
  Napi::Value linkList(const Napi::CallbackInfo& info) {
    return transact(info, [](Connection& c) { return rtnetlink::listLinks(c); });
  }
  Napi::Value linkGet(const Napi::CallbackInfo& info) {
    return transact(info, [device = deviceArgument(info[0])](Connection& c) { return rtnetlink::getLink(c, device); });
  }
  Napi::Value linkSet(const Napi::CallbackInfo& info) {
    return transact(info, [device = deviceArgument(info[0]), up = info[1].ToBoolean().Value()](Connection& c) {
      rtnetlink::setLinkUp(c, device, up);
    });
  }
  template <Verb verb>
  Napi::Value address(const Napi::CallbackInfo& info) {
    return transact(info,
                    [address = argument<rtnetlink::Address>(info)](Connection& c) { changeAddress(c, verb, address); });
  }
  Napi::Value addressList(const Napi::CallbackInfo& info) {
    return transact(info,
                    [family = familyArgument(info[0])](Connection& c) { return rtnetlink::listAddresses(c, family); });
  }
  Napi::Value portId(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), portId_); }
  Napi::Value guard(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const auto& connection = session_->open();
      const Napi::Value orphan = member(info[2], "orphan");
      const auto batches = member(info[2], "batches").As<Napi::Array>();
      std::vector<guard::Datagram> work;
      std::optional<Connection> nftables;
      if (batches.Length() > 0 || !orphan.IsUndefined()) nftables.emplace(NETLINK_NETFILTER, netns_);
      for (uint32_t i = 0; i < batches.Length(); ++i) {
        const Napi::Value operations = batches[i];
        work.push_back({nftables->descriptor(), batchBytes(operationsArgument(operations), {})});
      }
      netlink::Bytes requests;
      const auto append = [&](netlink::Message message) {
        message.header().nlmsg_flags &= static_cast<uint16_t>(~NLM_F_ACK);
        requests.insert(requests.end(), message.bytes().begin(), message.bytes().end());
      };
      std::vector<rtnetlink::Rule> rules;
      std::vector<rtnetlink::Route> routes;
      JsReader::read(info[0], rules, netlink::list({}, netlink::described));
      JsReader::read(info[1], routes, netlink::list({}, netlink::described));
      for (const auto& rule : rules) append(encodeRule(rtnetlink::Verb::erase, rule));
      for (auto& route : routes) {
        resolve(*connection, route.device);
        append(encodeRoute(rtnetlink::Verb::erase, std::move(route)));
      }
      work.push_back({connection->descriptor(), std::move(requests)});
      return startGuard(info.Env(), std::move(work), nftables ? nftables->descriptor() : -1, orphan,
                        member(info[2], "onEnd"));
    });
  }
  Napi::Value watch(const Napi::CallbackInfo& info) {
    const auto table = optionalMember<uint32_t>(info[0], "table", netlink::host32);
    return Watches::of(info.Env())
        .watch(
            info.Env(), [&](netlink::Watcher& watcher) { return rtnetlink::watch(watcher, netns_, table); },
            routeChange, info[1].As<Napi::Function>());
  }
  Napi::Value close(const Napi::CallbackInfo& info) { return session_->close(info.Env()); }

  std::shared_ptr<Session> session_;
  std::string netns_;
  uint32_t portId_;
};

// ---- nf_tables ------------------------------------------------------------------------------------------------------

class NftablesSocket : public Napi::ObjectWrap<NftablesSocket> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NftablesSocket",
                       {
                           InstanceAccessor<&NftablesSocket::portId>("portId"),
                           InstanceMethod<&NftablesSocket::commit<When::later>>("commit"),
                           InstanceMethod<&NftablesSocket::commit<When::now>>("commitSync"),
                           InstanceMethod<&NftablesSocket::generation>("generation"),
                           InstanceMethod<&NftablesSocket::list>("list"),
                           InstanceMethod<&NftablesSocket::get>("get"),
                           InstanceMethod<&NftablesSocket::resetCounters>("resetCounters"),
                           InstanceMethod<&NftablesSocket::watch>("watch"),
                           InstanceMethod<&NftablesSocket::close>("close"),
                       });
  }

  explicit NftablesSocket(const Napi::CallbackInfo& info)
      : ObjectWrap(info), session_(openSession(info, NETLINK_NETFILTER)), netns_(netnsArgument(info)) {
    portId_ = session_->open()->portId();
  }

 private:
  Napi::Value portId(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), portId_); }

  template <When when>
  Napi::Value commit(const Napi::CallbackInfo& info) {
    const auto options = batchOptions(info[1]);
    auto operations = guarded(info.Env(), [&] { return operationsArgument(info[0]); });
    return session_->transact<when>(info.Env(), [operations = std::move(operations), options](Connection& c) mutable {
      c.commit(options.dryRun ? "check batch" : "commit batch", nftables::encodeBatch(std::move(operations), options));
    });
  }

  Napi::Value generation(const Napi::CallbackInfo& info) {
    return session_->transact<When::later>(info.Env(), [](Connection& c) { return nftables::generation(c); });
  }

  static nftables::Filter filterArgument(Napi::Value js) {
    nftables::Filter filter;
    filter.family = optionalMember<uint8_t>(js, "family", nftables::familyOf);
    filter.table = optionalMember<std::string>(js, "table", netlink::text);
    filter.chain = optionalMember<std::string>(js, "chain", netlink::text);
    filter.set = optionalMember<std::string>(js, "set", netlink::text);
    filter.counter = optionalMember<std::string>(js, "counter", netlink::text);
    return filter;
  }
  Napi::Value list(const Napi::CallbackInfo& info) {
    return listKind(info.Env(), info[0].As<Napi::String>(), filterArgument(info[1]));
  }
  Napi::Value resetCounters(const Napi::CallbackInfo& info) {
    return session_->transact<When::later>(
        info.Env(), [filter = filterArgument(info[0])](Connection& c) { return nftables::resetCounters(c, filter); });
  }
  Napi::Value get(const Napi::CallbackInfo& info) {
    const std::string kind = member(info[0], "kind").As<Napi::String>();
    return getKind<nftables::Table, nftables::Chain, nftables::Rule, nftables::Set, nftables::NamedCounter>(info, kind);
  }
  template <class T, class... Others>
  Napi::Value getKind(const Napi::CallbackInfo& info, const std::string& kind) {
    if (kind == T::messages.kind) {
      auto key = guarded(info.Env(), [&] { return JsReader::object<T>(info[0], JsReader::Purpose::key); });
      return session_->transact<When::later>(info.Env(),
                                             [key = std::move(key)](Connection& c) { return nftables::get(c, key); });
    }
    if constexpr (sizeof...(Others) > 0) return getKind<Others...>(info, kind);
    throw Napi::TypeError::New(info.Env(), "unknown kind: " + kind);
  }
  template <size_t index = 0>
  Napi::Value listKind(Napi::Env env, const std::string& kind, const nftables::Filter& filter) {
    if constexpr (index == std::variant_size_v<nftables::Object>) {
      throw Napi::TypeError::New(env, "unknown kind: " + kind);
    } else {
      using T = std::variant_alternative_t<index, nftables::Object>;
      if (kind != T::messages.kind) return listKind<index + 1>(env, kind, filter);
      return session_->transact<When::later>(env, [filter](Connection& c) { return nftables::list<T>(c, filter); });
    }
  }

  Napi::Value watch(const Napi::CallbackInfo& info) {
    const auto table = optionalMember<std::string>(info[0], "table", netlink::text);
    return Watches::of(info.Env())
        .watch(
            info.Env(), [&](netlink::Watcher& watcher) { return nftables::watch(watcher, netns_, table); },
            NftChanges(), info[1].As<Napi::Function>());
  }

  Napi::Value close(const Napi::CallbackInfo& info) { return session_->close(info.Env()); }

  std::shared_ptr<Session> session_;
  std::string netns_;
  uint32_t portId_;
};

// ---- bytes ----------------------------------------------------------------------------------------------------------

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
  if (promises.As<Napi::Array>().Length() == job->size())
    job->submit();
  else
    job->discard();
  return promises;
}

Napi::Value toBuffer(Napi::Env env, const netlink::Bytes& bytes) {
  return Napi::Value(env, Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size()));
}

Napi::Value encodeRule(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto rule = JsReader::object<rtnetlink::Rule>(info[1]);
    return toBuffer(info.Env(), rtnetlink::encodeRule(verbArgument(info[0]), rule).bytes());
  });
}

Napi::Value encodeRoute(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto route = JsReader::object<rtnetlink::Route>(info[1]);
    if (route.device && route.device->index == 0) {
      route.device->index = ::if_nametoindex(route.device->name.c_str());
      if (route.device->index == 0)
        throw netlink::Error("get link " + route.device->name, {.errnum = ENODEV, .request = "RTM_GETLINK"});
    }
    return toBuffer(info.Env(), rtnetlink::encodeRoute(verbArgument(info[0]), std::move(route)).bytes());
  });
}

Napi::Value encodeAddress(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto address = JsReader::object<rtnetlink::Address>(info[1]);
    return toBuffer(info.Env(), rtnetlink::encodeAddress(verbArgument(info[0]), address).bytes());
  });
}

Napi::Value encodeRouteQuery(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto query = JsReader::object<rtnetlink::RouteQuery>(info[0]);
    return toBuffer(info.Env(), rtnetlink::encodeRouteQuery(query).bytes());
  });
}

Napi::Value encodeLinkUp(const Napi::CallbackInfo& info) {
  const auto index = info[0].As<Napi::Number>().Uint32Value();
  return toBuffer(info.Env(), rtnetlink::encodeLinkUp(index, info[1].ToBoolean()).bytes());
}

Napi::Value encodeBatch(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return toBuffer(info.Env(), batchBytes(operationsArgument(info[0]), batchOptions(info[1]))); });
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
  exports["RouteSocket"] = RouteSocket::define(env);
  exports["NftablesSocket"] = NftablesSocket::define(env);
  exports["sequence"] = Napi::Function::New<sequence>(env);
  exports["encodeRule"] = Napi::Function::New<encodeRule>(env);
  exports["encodeRoute"] = Napi::Function::New<encodeRoute>(env);
  exports["encodeAddress"] = Napi::Function::New<encodeAddress>(env);
  exports["encodeRouteQuery"] = Napi::Function::New<encodeRouteQuery>(env);
  exports["encodeLinkUp"] = Napi::Function::New<encodeLinkUp>(env);
  exports["encodeBatch"] = Napi::Function::New<encodeBatch>(env);
  exports["decodeRule"] = Napi::Function::New<decodeRule>(env);
  exports["decodeRoute"] = Napi::Function::New<decodeRoute>(env);
  exports["decodeAddress"] = Napi::Function::New<decodeAddress>(env);
  exports["decodeNftables"] = Napi::Function::New<decodeNftables>(env);
}

}  // namespace tproxy::bindings
