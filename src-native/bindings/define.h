// What each binding file adds to the module. Only addon.cc calls these.
#pragma once
#include <napi.h>

namespace tproxy::bindings {

void defineNetlink(Napi::Env env, Napi::Object exports);
void defineRouteSocket(Napi::Env env, Napi::Object exports);
void defineNftablesSocket(Napi::Env env, Napi::Object exports);
void defineSocket(Napi::Env env, Napi::Object exports);
void defineRelay(Napi::Env env, Napi::Object exports);

}  // namespace tproxy::bindings
