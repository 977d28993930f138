// RouteSocket.guard of src/native.ts: the child process that outlives this one.
#pragma once
#include <napi.h>

#include <string>
#include <vector>

#include "guard/process.h"

namespace tproxy::bindings {

// `work` is what it sends in the end; of its options these are `orphan`, `heir` and `onEnd`.
Napi::Value startGuard(Napi::Env env, std::vector<guard::Datagram> work, int nftablesSocket, Napi::Value options,
                       const std::string& netns);

}  // namespace tproxy::bindings
