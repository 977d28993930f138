#include "bindings/preparation.h"

#include "bindings/netlink_values.h"

namespace tproxy::bindings {

netlink::Batch Preparation::make() const {
  return nftables::encodeBatch(operationsArgument(Packed(operations_)), options_);
}

void Preparation::begin() noexcept {
  State untouched = State::untouched;
  if (!state_.compare_exchange_strong(untouched, State::begun)) return;
  try {
    batch_ = make();
  } catch (...) {
    failure_ = std::current_exception();
  }
  state_ = State::ready;
  state_.notify_all();
}

netlink::Batch Preparation::take() {
  begin();
  state_.wait(State::begun);
  if (failure_) std::rethrow_exception(failure_);
  return state_.exchange(State::taken) == State::ready ? std::move(batch_) : make();
}

}  // namespace tproxy::bindings
