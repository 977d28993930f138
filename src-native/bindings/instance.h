// Per-environment state (main thread and every worker thread have their own). Nothing in the addon is global.
#pragma once
#include <napi.h>

#include <memory>

#include "bindings/loose.h"

namespace tproxy::bindings {

class Executor;
class Job;
class Watches;

struct Instance {
  // Makes an Error of what native code tells about a failure: src/errors.ts, set once by setErrorFactory().
  Napi::FunctionReference errorFactory;
  // Makes the bytes of a value that Packed reads: src/pack.ts, set once by setPacker().
  Napi::FunctionReference packer;
  // What calls are added to at the moment instead of being sent.
  Job* sequence = nullptr;
  // Empty until there is something to do.
  std::shared_ptr<Executor> executor;
  // Empty until something is watched.
  std::shared_ptr<Watches> watches;
  LooseDescriptors loose;
};

// The Error that `failure` (a NativeFailure of src/native.ts) becomes; throw it or reject with its Value().
inline Napi::Error toError(Napi::Env env, Napi::Object failure) {
  auto* instance = env.GetInstanceData<Instance>();
  if (instance->errorFactory.IsEmpty()) return Napi::Error::New(env, "linux-tproxy: setErrorFactory() was not called");
  return Napi::Error(env, instance->errorFactory.Call({failure}));
}

}  // namespace tproxy::bindings
