// The header of the PROXY protocol, by which a server that speaks it learns whom its client is, and whom that meant to reach.
#pragma once
#include <string>

#include "socket/address.h"

namespace tproxy::relay {

// Version 1 (a line of text) or 2 (bytes), for TCP; both addresses are of one family.
// haproxy.org, doc/proxy-protocol.txt, sections 2.1 and 2.2.
std::string proxyHeader(int version, const socket::Address& source, const socket::Address& destination);

}  // namespace tproxy::relay
