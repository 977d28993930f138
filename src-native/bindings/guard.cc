#include "bindings/guard.h"

#include <fcntl.h>

#include <memory>
#include <optional>

#include "bindings/js.h"
#include "bindings/netlink_values.h"
#include "bindings/watches.h"
#include "guard/process.h"
#include "nftables/batch.h"

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

guard::Orphan orphanOf(Napi::Object js, int socket, std::vector<guard::Datagram>& work) {
  nftables::Table table{.family = NFPROTO_INET, .name = std::string(js.Get("table").As<Napi::String>())};
  guard::Orphan orphan{.socket = socket,
                       .question = {},
                       .takeover = {},
                       .graceMs = js.Get("graceMs").As<Napi::Number>().Uint32Value(),
                       .owner = js.Get("owner").As<Napi::Number>().Uint32Value()};
  Message question = nftables::newMessage(nftables::Table::messages.get, 0, table.family);
  netlink::Encoder(question).write(NETLINK_NAMED(NFTA_TABLE_NAME), table.name, netlink::text);
  append(orphan.question, question);
  // Flushed first: of a table that is not there no empty one is made.
  nftables::Table owned = table;
  owned.tableFlags = NFT_TABLE_F_OWNER | nftables::NFT_TABLE_F_PERSIST;
  orphan.takeover = batch({{nftables::Verb::flush, table}, {nftables::Verb::add, owned}});
  work.push_back({socket, batch({{nftables::Verb::erase, table}})});
  return orphan;
}

guard::Heir heirOf(Napi::Object js) {
  guard::Heir heir{.owner = js.Get("owner").As<Napi::Number>().Uint32Value(), .words = {}};
  const auto words = js.Get("words").As<Napi::Array>();
  for (uint32_t i = 0; i < words.Length(); ++i) heir.words.push_back(words.Get(i).As<Napi::String>());
  return heir;
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

Napi::Value startGuard(Napi::Env env, std::vector<guard::Datagram> work, int nftablesSocket, Napi::Value options,
                       const std::string& netns) {
  const Napi::Value orphan = member(options, "orphan");
  const Napi::Value heir = member(options, "heir");
  const Napi::Value onEnd = member(options, "onEnd");
  std::optional<guard::Orphan> left;
  if (!orphan.IsUndefined()) left = orphanOf(orphan.As<Napi::Object>(), nftablesSocket, work);
  std::optional<guard::Heir> next;
  if (!heir.IsUndefined()) next = heirOf(heir.As<Napi::Object>());
  auto guard = std::make_shared<Guard>();
  guard->process = std::make_unique<guard::Process>(
      work, guard::Process::Options{
                .orphan = left ? &*left : nullptr, .heir = next ? &*next : nullptr, .netns = next ? netns : ""});
  if (!onEnd.IsUndefined()) {
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
