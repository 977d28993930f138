#include "bindings/define.h"

namespace tproxy::bindings {

void defineRelay(Napi::Env, Napi::Object) {}

}  // namespace tproxy::bindings
