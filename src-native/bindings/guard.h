// RouteSocket.guard of src/native.ts: the child process that outlives this one.
#pragma once
#include <napi.h>

#include <string>

#include "netlink/connection.h"

namespace tproxy::bindings {

// `info` has the rules, the routes and the options. The guard works through a copy of `connection`'s socket.
Napi::Value startGuard(const Napi::CallbackInfo& info, netlink::Connection& connection, const std::string& netns);

}  // namespace tproxy::bindings
