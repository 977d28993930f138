#include "bindings/watches.h"

#include "bindings/instance.h"
#include "bindings/transaction.h"

namespace tproxy::bindings {

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

Watches::Watches(Napi::Env) : watcher_([this] { calls_.NonBlockingCall(); }) {}

void Watches::stop() {
  if (std::exchange(stopped_, true)) return;
  watcher_.stop();
  watches_.clear();
  calls_.Release();
}

Napi::Value Watches::watch(Napi::Env env, const std::function<netlink::Watcher::Id(netlink::Watcher&)>& begin,
                           Read read, Napi::Function onChanges) {
  const auto id = guarded(env, [&] { return begin(watcher_); });
  watches_[id] = std::make_shared<Watch>(Watch{std::move(read), Napi::Persistent(onChanges)});
  return Napi::Function::New(env, [self = weak_from_this(), id](const Napi::CallbackInfo&) {
    const auto watches = self.lock();
    if (!watches || watches->watches_.erase(id) == 0) return;
    watches->watcher_.unwatch(id);
  });
}

void Watches::deliver(Napi::Env env, Napi::Function, Watches* self, void*) {
  if (env != nullptr) self->deliverTo(env);
}

void Watches::deliverTo(Napi::Env env) {
  std::map<netlink::Watcher::Id, Napi::Array> changes;
  for (const Notification& notification : watcher_.take()) {
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
    watch->onChanges.Call({list});
  }
}

}  // namespace tproxy::bindings
