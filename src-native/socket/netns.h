// Work in another network namespace. A socket stays for ever in the namespace it was made in, so it is enough that a
// short-lived thread makes it there; the caller's thread never moves.
#pragma once
#include <functional>
#include <string>

namespace tproxy {

// Runs `fn` on a thread of its own that entered the namespace at `path` (`/run/netns/router`, `/proc/1/ns/net`), and
// waits for it; what it throws is thrown here. An empty path means no switch: `fn` runs at once on the calling thread.
// Throws std::system_error, whose text begins with `open <path>` or `setns <path>`.
void inNetns(const std::string& path, const std::function<void()>& fn);

}  // namespace tproxy
