// JavaScript values that the socket and the relay bindings share.
#pragma once
#include <napi.h>

#include <cstdint>
#include <optional>
#include <string>

#include "socket/address.h"
#include "socket/error.h"

namespace tproxy::bindings {

// A NativeFailure of src/native.ts, of kind `socket`.
Napi::Object failureOf(Napi::Env env, const socket::Error& error);
// The Error it becomes.
Napi::Error toError(Napi::Env env, const socket::Error& error);
Napi::Object endpointOf(Napi::Env env, bool v6, const std::string& address, std::uint16_t port);

// Options that may be absent.
std::string optionalString(const Napi::Object& options, const char* name);
std::optional<std::int64_t> optionalNumber(const Napi::Object& options, const char* name);
std::optional<std::uint32_t> optionalMark(const Napi::Object& options);
bool optionalFlag(const Napi::Object& options, const char* name);

}  // namespace tproxy::bindings
