#include "bindings/define.h"

namespace tproxy::bindings {

void defineSocket(Napi::Env, Napi::Object) {}

}  // namespace tproxy::bindings
