// RouteSocket of src/native.ts.
#include "bindings/define.h"
#include "bindings/guard.h"
#include "bindings/netlink_values.h"
#include "bindings/watches.h"
#include "rtnetlink/watch.h"

namespace tproxy::bindings {

using netlink::ByteView;
using netlink::Connection;
using When = Session::When;

namespace {

std::optional<uint8_t> familyArgument(const Packed& js) {
  std::optional<uint8_t> family;
  if (!js.isUndefined()) JsReader::read(js, family.emplace(), rtnetlink::familyOf);
  return family;
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

class RouteSocket : public GuardedWrap<RouteSocket> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "RouteSocket",
                       {
                           method<&RouteSocket::commit<When::later>>("commit"),
                           method<&RouteSocket::commit<When::now>>("commitSync"),
                           method<&RouteSocket::rule<Verb::add>>("ruleAdd"),
                           method<&RouteSocket::rule<Verb::erase>>("ruleDelete"),
                           method<&RouteSocket::ruleList>("ruleList"),
                           method<&RouteSocket::route<Verb::add>>("routeAdd"),
                           method<&RouteSocket::route<Verb::replace>>("routeReplace"),
                           method<&RouteSocket::route<Verb::erase>>("routeDelete"),
                           method<&RouteSocket::routeGet>("routeGet"),
                           method<&RouteSocket::routeList>("routeList"),
                           method<&RouteSocket::linkList>("linkList"),
                           method<&RouteSocket::linkGet>("linkGet"),
                           method<&RouteSocket::linkAdd>("linkAdd"),
                           method<&RouteSocket::linkSet>("linkSet"),
                           method<&RouteSocket::linkDelete>("linkDelete"),
                           method<&RouteSocket::address<Verb::add>>("addressAdd"),
                           method<&RouteSocket::address<Verb::replace>>("addressReplace"),
                           method<&RouteSocket::address<Verb::erase>>("addressDelete"),
                           method<&RouteSocket::addressList>("addressList"),
                           InstanceAccessor<&RouteSocket::portId>("portId"),
                           method<&RouteSocket::guard>("guard"),
                           method<&RouteSocket::watch>("watch"),
                           method<&RouteSocket::close>("close"),
                       });
  }

  explicit RouteSocket(const Napi::CallbackInfo& info)
      : GuardedWrap(info), session_(openSession(info, NETLINK_ROUTE)), netns_(netnsArgument(info)) {
    portId_ = session_->open()->portId();
  }

 private:
  using Verb = rtnetlink::Verb;

  template <When when = When::later>
  Napi::Value transact(const Napi::CallbackInfo& info, auto work) {
    return session_->transact<when>(info.Env(), std::move(work));
  }
  template <class T>
  static T argument(const Napi::CallbackInfo& info, size_t index = 0) {
    return JsReader::object<T>(Packed(info[index]));
  }

  template <When when>
  Napi::Value commit(const Napi::CallbackInfo& info) {
    return transact<when>(
        info, [bytes = copy(packed(info[0]))](Connection& c) { rtnetlink::change(c, changesArgument(Packed(bytes))); });
  }
  template <Verb verb>
  Napi::Value rule(const Napi::CallbackInfo& info) {
    return transact(info, [rule = argument<rtnetlink::Rule>(info)](Connection& c) { changeRule(c, verb, rule); });
  }
  Napi::Value ruleList(const Napi::CallbackInfo& info) {
    return transact(
        info, [family = familyArgument(Packed(info[0]))](Connection& c) { return rtnetlink::listRules(c, family); });
  }
  template <Verb verb>
  Napi::Value route(const Napi::CallbackInfo& info) {
    return transact(info, [route = argument<rtnetlink::Route>(info)](Connection& c) { changeRoute(c, verb, route); });
  }
  Napi::Value routeGet(const Napi::CallbackInfo& info) {
    return transact(
        info, [query = argument<rtnetlink::RouteQuery>(info)](Connection& c) { return rtnetlink::getRoute(c, query); });
  }
  Napi::Value routeList(const Napi::CallbackInfo& info) {
    rtnetlink::RouteFilter filter;
    const Packed js(info[0]);
    filter.family = optionalMember<uint8_t>(js, "family", rtnetlink::familyOf);
    filter.table = optionalMember<uint32_t>(js, "table", netlink::host32);
    return transact(info, [filter](Connection& c) { return listRoutes(c, filter); });
  }
  Napi::Value linkList(const Napi::CallbackInfo& info) {
    return transact(info, [](Connection& c) { return rtnetlink::listLinks(c); });
  }
  Napi::Value linkGet(const Napi::CallbackInfo& info) {
    return transact(
        info, [device = deviceArgument(Packed(info[0]))](Connection& c) { return rtnetlink::getLink(c, device); });
  }
  Napi::Value linkAdd(const Napi::CallbackInfo& info) {
    return transact(info, [link = argument<rtnetlink::NewLink>(info)](Connection& c) { rtnetlink::addLink(c, link); });
  }
  Napi::Value linkSet(const Napi::CallbackInfo& info) {
    return transact(info,
                    [device = deviceArgument(Packed(info[0])), change = argument<rtnetlink::LinkSettings>(info, 1)](
                        Connection& c) { rtnetlink::setLink(c, device, change); });
  }
  Napi::Value linkDelete(const Napi::CallbackInfo& info) {
    return transact(info,
                    [device = deviceArgument(Packed(info[0]))](Connection& c) { rtnetlink::deleteLink(c, device); });
  }
  template <Verb verb>
  Napi::Value address(const Napi::CallbackInfo& info) {
    return transact(info,
                    [address = argument<rtnetlink::Address>(info)](Connection& c) { changeAddress(c, verb, address); });
  }
  Napi::Value addressList(const Napi::CallbackInfo& info) {
    return transact(info, [family = familyArgument(Packed(info[0]))](Connection& c) {
      return rtnetlink::listAddresses(c, family);
    });
  }
  Napi::Value portId(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), portId_); }
  Napi::Value guard(const Napi::CallbackInfo& info) { return makeGuard(info, session_, netns_); }
  Napi::Value watch(const Napi::CallbackInfo& info) {
    const Packed js(info[0]);
    const rtnetlink::WatchFilter filter{
        .table = optionalMember<uint32_t>(js, "table", netlink::host32),
        .priorities = optionalMember<std::vector<uint32_t>>(js, "priorities", netlink::list({}, netlink::host32))};
    const auto begin = [&](netlink::Watcher& watcher) { return rtnetlink::watch(watcher, netns_, filter); };
    return Napi::Number::New(
        info.Env(), Watches::of(info.Env()).watch(info.Env(), begin, routeChange, info[1].As<Napi::Function>()));
  }
  Napi::Value close(const Napi::CallbackInfo& info) { return session_->close(info.Env()); }

  std::shared_ptr<Session> session_;
  std::string netns_;
  uint32_t portId_;
};

}  // namespace

void defineRouteSocket(Napi::Env env, Napi::Object exports) { exports["RouteSocket"] = RouteSocket::define(env); }

}  // namespace tproxy::bindings
