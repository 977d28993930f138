// What the broker is asked and what it answers: one datagram each, of fixed size.
#pragma once
#include <cstdint>

namespace tproxy::broker {

// A socket with this mark, bound to this address and port; to nothing where the address is all zeros.
struct Request {
  std::uint8_t family;  // AF_INET or AF_INET6
  std::uint8_t reserved[5];
  std::uint16_t port;        // 0: chosen at connect
  std::uint32_t scope;       // of a link-local address: the index of the interface
  std::uint32_t mark;        // 0: none
  std::uint8_t address[16];  // IPv4: the first four
};
static_assert(sizeof(Request) == 32);

// The system call that failed, if one did.
enum class Call : std::uint32_t { none, request, socket, mark, reuseAddress, transparent, bindNoPort, bind };
struct Reply {
  std::int32_t error;  // 0: the socket comes with it (SCM_RIGHTS)
  Call call;
};

}  // namespace tproxy::broker
