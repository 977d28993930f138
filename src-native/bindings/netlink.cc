#include "bindings/define.h"

namespace tproxy::bindings {

void defineNetlink(Napi::Env, Napi::Object) {}

}  // namespace tproxy::bindings
