// The broker's work, in its own process (guard/main.cc).
#pragma once

namespace tproxy::broker {

// Answers requests on standard input until there is nobody left to ask.
int serve();

}  // namespace tproxy::broker
