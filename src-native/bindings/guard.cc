#include "bindings/guard.h"

#include <fcntl.h>

#include <optional>
#include <utility>
#include <vector>

#include "bindings/netlink_values.h"
#include "bindings/watches.h"
#include "guard/process.h"
#include "rtnetlink/change.h"

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

guard::Orphan orphanOf(const Packed& js, std::vector<guard::Datagram>& work) {
  nftables::Table table{.family = NFPROTO_INET, .name = std::string(js["table"].string())};
  guard::Orphan orphan{.question = {},
                       .takeover = {},
                       .graceMs = js["graceMs"].number<uint32_t>(),
                       .owner = js["owner"].number<uint32_t>()};
  Message question = nftables::newMessage(nftables::Table::messages.get, 0, table.family);
  netlink::Encoder(question).write(NETLINK_NAMED(NFTA_TABLE_NAME), table.name, netlink::text);
  append(orphan.question, question);
  // Flushed first: of a table that is not there no empty one is made.
  nftables::Table owned = table;
  owned.tableFlags = NFT_TABLE_F_OWNER | nftables::NFT_TABLE_F_PERSIST;
  orphan.takeover = batch({{nftables::Verb::flush, table}, {nftables::Verb::add, owned}});
  work.push_back({guard::Socket::nftables, batch({{nftables::Verb::erase, table}})});
  return orphan;
}

guard::Heir heirOf(const Packed& js, Bytes lock) {
  guard::Heir heir{.owner = js["owner"].number<uint32_t>(), .words = {}, .lock = std::move(lock)};
  for (const Packed& word : js["words"].elements()) heir.words += std::string(word.string()) + '\n';
  return heir;
}

// The guard as JavaScript has it: it goes with the last function that refers to it.
class Guard : public std::enable_shared_from_this<Guard> {
 public:
  Guard(std::shared_ptr<Session> session, std::string netns, const Packed& lock, Napi::Value onEnd)
      : session_(std::move(session)), netns_(std::move(netns)) {
    if (auto operations = operationsArgument(lock); !operations.empty()) lock_ = batch(std::move(operations));
    if (!onEnd.IsUndefined()) onEnd_ = Napi::Persistent(onEnd.As<Napi::Function>());
  }

  void renew(Napi::Env env, const Packed& js) {
    netlink::Connection& connection = *session_->open();
    std::vector<guard::Datagram> work;
    for (const Packed& operations : js["batches"].elements())
      work.push_back({guard::Socket::nftables, batch(operationsArgument(operations))});
    std::optional<guard::Orphan> left;
    if (const Packed orphan = js["orphan"]; !orphan.isUndefined()) left = orphanOf(orphan, work);
    const bool needsNftables = !work.empty();
    std::optional<guard::Heir> next;
    if (const Packed heir = js["heir"]; !heir.isUndefined()) next = heirOf(heir, lock_);
    const auto tell = [&](guard::Process& process) {
      process.renew(work, left ? &*left : nullptr, next ? &*next : nullptr);
    };

    Bytes requests;
    rtnetlink::Names names(connection);
    for (const Message& message : rtnetlink::encodeChanges(names, changesArgument(js["changes"])))
      append(requests, message);
    if (!requests.empty()) work.push_back({guard::Socket::route, std::move(requests)});

    if (work.empty()) return rest();
    if (process_ && (process_->hasNftables() || !needsNftables)) return tell(*process_);
    // The old one, if any, is ended when the new one knows what to do.
    std::optional<netlink::Connection> nftables;
    if (needsNftables) nftables.emplace(NETLINK_NETFILTER, netns_);
    auto process =
        std::make_unique<guard::Process>(connection.descriptor(), nftables ? nftables->descriptor() : -1, netns_);
    try {
      tell(*process);
    } catch (...) {
      process->disarm();
      throw;
    }
    end(env);
    process_ = std::move(process);
    watch(env);
  }
  void rest() {
    if (process_) process_->rest();
  }
  void end(Napi::Env env) { finish(env, &guard::Process::disarm); }
  void release(Napi::Env env) { finish(env, &guard::Process::release); }

 private:
  void finish(Napi::Env env, void (guard::Process::*how)()) {
    if (watch_) Watches::of(env).unwatch(*watch_);
    watch_.reset();
    if (process_) (process_.get()->*how)();
    process_.reset();
  }
  void watch(Napi::Env env) {
    if (onEnd_.IsEmpty()) return;
    const auto begin = [&](netlink::Watcher& watcher) {
      return watcher.watch(UniqueFd(::fcntl(process_->pidfd(), F_DUPFD_CLOEXEC, 0)));
    };
    const auto read = [](Napi::Env environment, const auto&) { return Napi::Value(environment.Null()); };
    const auto ended = [self = weak_from_this()](const Napi::CallbackInfo& call) {
      const auto guard = self.lock();
      if (!guard) return;
      guard->end(call.Env());  // there is nothing to end, but somebody has to have waited for it
      guard->onEnd_.Call({});
    };
    watch_ = Watches::of(env).watch(env, begin, read, Napi::Function::New(env, ended));
  }

  const std::shared_ptr<Session> session_;
  const std::string netns_;
  Bytes lock_;
  Napi::FunctionReference onEnd_;
  std::optional<netlink::Watcher::Id> watch_;
  std::unique_ptr<guard::Process> process_;  // none before there is something to do
};

}  // namespace

Napi::Value makeGuard(const Napi::CallbackInfo& info, std::shared_ptr<Session> session, std::string netns) {
  const Napi::Env env = info.Env();
  const auto guard = std::make_shared<Guard>(std::move(session), std::move(netns), Packed(info[1]), info[2]);
  const auto renew = [guard](const Napi::CallbackInfo& call) {
    guarded(call.Env(), [&] { guard->renew(call.Env(), Packed(call[0])); });
  };
  renew(info);
  auto js = Napi::Object::New(env);
  js["renew"] = Napi::Function::New(env, renew);
  js["rest"] = Napi::Function::New(env, [guard](const Napi::CallbackInfo&) { guard->rest(); });
  js["end"] = Napi::Function::New(env, [guard](const Napi::CallbackInfo& call) { guard->end(call.Env()); });
  js["release"] = Napi::Function::New(env, [guard](const Napi::CallbackInfo& call) { guard->release(call.Env()); });
  return js;
}

}  // namespace tproxy::bindings
