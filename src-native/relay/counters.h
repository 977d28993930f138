// The shared counters JavaScript reads live. The layout is `Counter` in src/native.ts.
#pragma once
#include <atomic>
#include <cstdint>

namespace tproxy::relay {

enum class Counter {
  bytesFromClient,
  bytesFromServer,
  total,
  open,
  spliced,
  copied,
  connectErrors,
  acceptErrors,
  pipes
};

// Where one connection counts: in a slot of its own, in that of the server it was accepted on, in both or in neither.
// Several threads may count in one slot; nothing is ordered by it.
struct Counters {
  std::uint64_t* own = nullptr;
  std::uint64_t* server = nullptr;

  static void add(std::uint64_t* slot, Counter counter, std::uint64_t amount) {
    if (slot) std::atomic_ref(slot[static_cast<std::size_t>(counter)]).fetch_add(amount, std::memory_order_relaxed);
  }
  void add(Counter counter, std::uint64_t amount) const {
    add(own, counter, amount);
    add(server, counter, amount);
  }
};

}  // namespace tproxy::relay
