// Deadlines by id: exact, one tree node each, nothing to do per byte (whoever was active moves its deadline when it
// comes).
#pragma once
#include <cstdint>
#include <map>
#include <optional>

namespace tproxy::relay {

class Timers {
 public:
  using Map = std::multimap<std::int64_t, std::uint64_t>;  // milliseconds of the monotonic clock -> id
  using Handle = std::optional<Map::iterator>;

  void arm(Handle& handle, std::int64_t deadline, std::uint64_t id) {
    disarm(handle);
    handle = map_.emplace(deadline, id);
  }
  void disarm(Handle& handle) {
    if (handle) map_.erase(*handle);
    handle.reset();
  }
  std::optional<std::int64_t> next() const { return map_.empty() ? std::nullopt : std::optional(map_.begin()->first); }
  // The id whose deadline is over for longest; it stays armed until disarm() or arm().
  std::optional<std::uint64_t> due(std::int64_t now) const {
    return map_.empty() || map_.begin()->first > now ? std::nullopt : std::optional(map_.begin()->second);
  }

 private:
  Map map_;
};

}  // namespace tproxy::relay
