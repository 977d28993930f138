// Network namespaces. A thread has a namespace of its own choice, and a socket stays in the one it was made in.
#pragma once
#include <functional>
#include <string>

#include "unique_fd.h"

namespace tproxy {

// Throws socket::Error `open <path>`.
UniqueFd openNetns(const std::string& path);

// Moves the calling thread into the namespace at `path` (such as `/run/netns/router`), for the rest of its life.
void enterNetns(const std::string& path);

// Runs `fn` inside the namespace at `path`, on a short-lived thread, so that the caller's thread never moves. What `fn`
// throws is thrown here, and socket::Error `open <path>` or `setns <path>`. An empty path runs `fn` directly.
void inNetns(const std::string& path, const std::function<void()>& fn);

}  // namespace tproxy
