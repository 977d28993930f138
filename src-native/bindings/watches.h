// What JavaScript watches through netlink, in one environment: the watcher's thread and the functions that it calls.
#pragma once
#include <napi.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "netlink/watcher.h"

namespace tproxy::bindings {

class Watches : public std::enable_shared_from_this<Watches> {
 public:
  using Notification = netlink::Watcher::Notification;
  // Makes the JavaScript value of a notification; an empty one where more has to come first.
  using Read = std::function<Napi::Value(Napi::Env env, const Notification& notification)>;

  // The one of this environment.
  static Watches& of(Napi::Env env);
  ~Watches() { stop(); }

  // `begin` begins the watch. `onChanges` is called with an array, and never after `unwatch`. The thread does not keep
  // the process alive.
  netlink::Watcher::Id watch(Napi::Env env, const std::function<netlink::Watcher::Id(netlink::Watcher&)>& begin,
                             Read read, Napi::Function onChanges);
  void unwatch(netlink::Watcher::Id id);

 private:
  struct Watch {
    Read read;
    Napi::FunctionReference onChanges;
  };

  explicit Watches(Napi::Env env);
  static void deliver(Napi::Env env, Napi::Function, Watches* self, void*);
  void deliverTo(Napi::Env env);
  void deliverLater(Napi::Env env);
  void stop();
  using Calls = Napi::TypedThreadSafeFunction<Watches, void, deliver>;

  Calls calls_;
  Napi::FunctionReference setImmediate_;
  bool stopped_ = false;
  std::map<netlink::Watcher::Id, std::shared_ptr<Watch>> watches_;
  netlink::Watcher watcher_;  // the last, so that its thread is joined before the rest goes
};

}  // namespace tproxy::bindings
