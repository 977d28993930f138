// Module entry: runs once per environment, so that worker threads get a working copy of their own.
#include <napi.h>

#include "bindings/define.h"
#include "bindings/instance.h"

namespace {

using tproxy::bindings::Instance;

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Instance);  // deleted by Node when the environment ends
  exports["setErrorFactory"] = Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
    info.Env().GetInstanceData<Instance>()->errorFactory = Napi::Persistent(info[0].As<Napi::Function>());
  });
  exports["setPacker"] = Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
    info.Env().GetInstanceData<Instance>()->packer = Napi::Persistent(info[0].As<Napi::Function>());
  });
  tproxy::bindings::defineNetlink(env, exports);
  tproxy::bindings::defineRouteSocket(env, exports);
  tproxy::bindings::defineNftablesSocket(env, exports);
  tproxy::bindings::defineSocket(env, exports);
  tproxy::bindings::defineRelay(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, init)
