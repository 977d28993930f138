// A batch of nf_tables, made of JavaScript's operations before it is needed.
#pragma once
#include <atomic>
#include <exception>
#include <utility>

#include "netlink/connection.h"
#include "nftables/batch.h"

namespace tproxy::bindings {

// Whoever has the time makes it: a thread of the executor's, JavaScript's while others are committed, or the one that needs it.
class Preparation {
 public:
  // What was packed (packed.h).
  Preparation(netlink::Bytes operations, const nftables::BatchOptions& options)
      : operations_(std::move(operations)), options_(options) {}

  // Makes the batch, unless somebody has begun to.
  void begin() noexcept;
  // Waits for it. Throws what begin() ran into.
  netlink::Batch take();

  const netlink::Bytes& operations() const { return operations_; }
  const nftables::BatchOptions& options() const { return options_; }

 private:
  enum class State { untouched, begun, ready, taken };

  netlink::Batch make() const;

  const netlink::Bytes operations_;
  const nftables::BatchOptions options_;
  std::atomic<State> state_ = State::untouched;
  netlink::Batch batch_;
  std::exception_ptr failure_;
};

}  // namespace tproxy::bindings
