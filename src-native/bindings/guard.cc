#include "bindings/guard.h"

#include <fcntl.h>

#include <memory>
#include <optional>

#include "bindings/js.h"
#include "bindings/watches.h"
#include "guard/process.h"
#include "nftables/batch.h"
#include "rtnetlink/route.h"
#include "rtnetlink/rule.h"

namespace tproxy::bindings {

namespace {

using netlink::Bytes;
using netlink::Message;

void append(Bytes& bytes, Message message) {
  message.header().nlmsg_flags &= static_cast<uint16_t>(~NLM_F_ACK);
  bytes.insert(bytes.end(), message.bytes().begin(), message.bytes().end());
}

Bytes batch(std::vector<nftables::Operation> operations) {
  Bytes bytes;
  for (const Message& message : nftables::encodeBatch(std::move(operations), {}).messages) append(bytes, message);
  return bytes;
}

// About a table that outlives its owner.
struct OfTable {
  Bytes question, takeover, removal;
  guard::Grace grace;
};

OfTable ofTable(Napi::Object js) {
  nftables::Table table{.family = NFPROTO_INET, .name = std::string(js.Get("table").As<Napi::String>())};
  OfTable requests;
  Message question = nftables::newMessage(nftables::Table::messages.get, 0, table.family);
  netlink::Encoder(question).write(NETLINK_NAMED(NFTA_TABLE_NAME), table.name, netlink::text);
  append(requests.question, question);
  requests.removal = batch({{nftables::Verb::erase, table}});
  // Flushed first: of a table that is not there no empty one is made.
  nftables::Table owned = table;
  owned.tableFlags = NFT_TABLE_F_OWNER | nftables::NFT_TABLE_F_PERSIST;
  requests.takeover = batch({{nftables::Verb::flush, table}, {nftables::Verb::add, owned}});
  requests.grace = {.milliseconds = js.Get("graceMs").As<Napi::Number>().Uint32Value(),
                    .owner = js.Get("owner").As<Napi::Number>().Uint32Value()};
  return requests;
}

// Keeps the guard: it goes with the last function that refers to it.
struct Guard {
  std::unique_ptr<guard::Process> process;
  Napi::FunctionReference unwatch;

  void forget(Napi::Env env) {
    if (!unwatch.IsEmpty()) unwatch.Call(env.Undefined(), {});
    unwatch.Reset();
  }
};

}  // namespace

Napi::Value startGuard(const Napi::CallbackInfo& info, netlink::Connection& connection, const std::string& netns) {
  const Napi::Env env = info.Env();
  std::vector<rtnetlink::Rule> rules;
  std::vector<rtnetlink::Route> routes;
  JsReader::read(info[0], rules, netlink::list({}, netlink::described));
  JsReader::read(info[1], routes, netlink::list({}, netlink::described));
  const auto options = info[2].As<Napi::Object>();

  Bytes routing;
  for (const auto& rule : rules) append(routing, encodeRule(rtnetlink::Verb::erase, rule));
  for (auto& route : routes)
    append(routing, encodeRoute(rtnetlink::Verb::erase, resolved(connection, std::move(route))));
  const Napi::Value orphan = options.Get("orphan");
  OfTable about;
  std::optional<netlink::Connection> nftables;
  if (!orphan.IsUndefined()) {
    about = ofTable(orphan.As<Napi::Object>());
    nftables.emplace(NETLINK_NETFILTER, netns);
  }

  auto guard = std::make_shared<Guard>();
  guard->process = std::make_unique<guard::Process>(
      connection.descriptor(), nftables ? nftables->descriptor() : -1,
      guard::Requests{
          .routing = routing, .question = about.question, .takeover = about.takeover, .removal = about.removal},
      about.grace);
  if (const Napi::Value onEnd = options.Get("onEnd"); !onEnd.IsUndefined()) {
    const auto begin = [&](netlink::Watcher& watcher) {
      return watcher.watch(UniqueFd(::fcntl(guard->process->pidfd(), F_DUPFD_CLOEXEC, 0)));
    };
    const auto read = [](Napi::Env environment, const auto&) { return Napi::Value(environment.Null()); };
    guard->unwatch =
        Napi::Persistent(Watches::of(env).watch(env, begin, read, onEnd.As<Napi::Function>()).As<Napi::Function>());
  }
  auto js = Napi::Object::New(env);
  js["end"] = Napi::Function::New(env, [guard](const Napi::CallbackInfo& call) {
    guard->forget(call.Env());
    if (guard->process) guard->process->disarm();
    guard->process.reset();
  });
  js["release"] = Napi::Function::New(env, [guard](const Napi::CallbackInfo& call) {
    guard->forget(call.Env());
    if (guard->process) guard->process->release();
    guard->process.reset();
  });
  return js;
}

}  // namespace tproxy::bindings
