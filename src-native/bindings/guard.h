// RouteSocket.guard of src/native.ts: the child process that outlives this one.
#pragma once
#include <napi.h>

#include <memory>
#include <string>

#include "bindings/transaction.h"

namespace tproxy::bindings {

// With the arguments of the call; `session` is the socket's, in the namespace at `netns`.
Napi::Value makeGuard(const Napi::CallbackInfo& info, std::shared_ptr<Session> session, std::string netns);

}  // namespace tproxy::bindings
