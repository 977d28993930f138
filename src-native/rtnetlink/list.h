// What the dumps of rtnetlink have in common.
#pragma once
#include <sys/socket.h>

#include <cstdint>
#include <optional>

namespace tproxy::rtnetlink {

inline void forEachFamily(std::optional<uint8_t> family, auto visit) {
  for (const uint8_t one : {uint8_t{AF_INET}, uint8_t{AF_INET6}})
    if (!family || *family == one) visit(one);
}

}  // namespace tproxy::rtnetlink
