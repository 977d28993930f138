#include "bindings/watches.h"

#include "bindings/instance.h"
#include "bindings/transaction.h"

namespace tproxy::bindings {

namespace {

// Made into JavaScript's values, and told, in one turn of the event loop: some ten milliseconds.
constexpr size_t mostPerTurn = 1024;

}  // namespace

Watches& Watches::of(Napi::Env env) {
  auto& watches = env.GetInstanceData<Instance>()->watches;
  if (!watches) {
    watches.reset(new Watches(env));
    // Lives until the function that carries its calls is gone, so that no call can meet a dead object.
    watches->calls_ = Calls::New(
        env, "linux-tproxy", 0, 1, watches.get(),
        [](Napi::Env, std::shared_ptr<Watches>* held, Watches*) { delete held; },
        new std::shared_ptr<Watches>(watches));
    watches->calls_.Unref(env);
    // Hooks run in reverse order: the thread is joined before the function goes.
    napi_add_env_cleanup_hook(
        env, [](void* self) { static_cast<Watches*>(self)->stop(); }, watches.get());
  }
  return *watches;
}

Watches::Watches(Napi::Env env)
    : setImmediate_(Napi::Persistent(env.Global().Get("setImmediate").As<Napi::Function>())),
      watcher_([this] { calls_.NonBlockingCall(); }) {}

void Watches::stop() {
  if (std::exchange(stopped_, true)) return;
  watcher_.stop();
  watches_.clear();
  calls_.Release();
}

netlink::Watcher::Id Watches::watch(Napi::Env env, const std::function<netlink::Watcher::Id(netlink::Watcher&)>& begin,
                                    Read read, Napi::Function onChanges) {
  const auto id = guarded(env, [&] { return begin(watcher_); });
  watches_[id] = std::make_shared<Watch>(Watch{std::move(read), Napi::Persistent(onChanges)});
  return id;
}

void Watches::unwatch(netlink::Watcher::Id id) {
  if (watches_.erase(id) != 0) watcher_.unwatch(id);
}

void Watches::deliver(Napi::Env env, Napi::Function, Watches* self, void*) {
  if (env != nullptr) self->deliverTo(env);
}

// Not by `calls_`, which would be called again at once, before the event loop goes on.
void Watches::deliverLater(Napi::Env env) {
  const auto deliver = Napi::Function::New(env, [self = weak_from_this()](const Napi::CallbackInfo& info) {
    if (const auto watches = self.lock()) watches->deliverTo(info.Env());
  });
  const auto immediate = setImmediate_.Call({deliver}).As<Napi::Object>();
  immediate.Get("unref").As<Napi::Function>().Call(immediate, {});
}

void Watches::deliverTo(Napi::Env env) {
  std::map<netlink::Watcher::Id, Napi::Array> changes;
  const auto taken = watcher_.take(mostPerTurn);
  for (const Notification& notification : taken.notifications) {
    const auto watch = watches_.find(notification.id);
    if (watch == watches_.end()) continue;  // ended meanwhile
    const Napi::Value change = watch->second->read(env, notification);
    if (change.IsEmpty()) continue;
    Napi::Array& list = changes.try_emplace(notification.id, Napi::Array::New(env)).first->second;
    list[list.Length()] = change;
  }
  for (const auto& [id, list] : changes) {
    const auto found = watches_.find(id);
    if (found == watches_.end()) continue;
    const std::shared_ptr<Watch> watch = found->second;  // it may end itself
    try {
      watch->onChanges.Call({list});
    } catch (const Napi::Error& error) {
      napi_fatal_exception(env, error.Value());  // 'uncaughtException'; the other watches are told all the same
    }
  }
  if (taken.more) deliverLater(env);
}

}  // namespace tproxy::bindings
