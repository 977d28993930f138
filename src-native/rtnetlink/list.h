// What the dumps of rtnetlink have in common.
#pragma once
#include <sys/socket.h>

#include <optional>
#include <string>
#include <vector>

#include "netlink/connection.h"

namespace tproxy::rtnetlink {

inline void forEachFamily(std::optional<uint8_t> family, auto visit) {
  for (const uint8_t one : {uint8_t{AF_INET}, uint8_t{AF_INET6}})
    if (!family || *family == one) visit(one);
}

// What the dump gives, or nothing where the kernel does not have the family (booted with ipv6.disable=1) or the table.
inline std::vector<netlink::Bytes> unlessMissing(auto dump) {
  try {
    return dump();
  } catch (const netlink::Error& error) {
    if (error.refusal.errnum == EAFNOSUPPORT || error.refusal.errnum == ENOENT) return {};
    throw;
  }
}

}  // namespace tproxy::rtnetlink
