// RouteSocket.guard of src/native.ts: the child process that outlives this one.
#pragma once
#include <napi.h>

#include <vector>

#include "guard/process.h"

namespace tproxy::bindings {

// `work` is what it sends in the end; `orphan` and `onEnd` are options of it.
Napi::Value startGuard(Napi::Env env, std::vector<guard::Datagram> work, int nftablesSocket, Napi::Value orphan,
                       Napi::Value onEnd);

}  // namespace tproxy::bindings
