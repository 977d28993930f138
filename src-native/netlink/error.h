// What can go wrong in a netlink transaction, as the kernel tells it.
#pragma once
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace tproxy::netlink {

// The kernel's answer to one message that it refused.
struct Refusal {
  int errnum = 0;                        // positive
  std::string request;                   // RTM_NEWRULE
  std::optional<std::string> attribute;  // FRA_TABLE: the attribute that the extended ack points at
  std::optional<std::string> extack;     // the extended ack's text
};

// A failed transaction. `refusal` is its first error; a batch that was refused lists all of them.
class Error : public std::runtime_error {
 public:
  struct Indexed {
    size_t index;  // of the operation in the batch
    Refusal refusal;
  };

  Error(std::string what, Refusal why, std::vector<Indexed> every = {})
      : std::runtime_error(what), operation(std::move(what)), refusal(std::move(why)), all(std::move(every)) {}

  std::string operation;  // add rule
  Refusal refusal;
  std::vector<Indexed> all;
};

// Bytes that are not a message as the kernel makes them: too short, or lengths that lead past the end.
class Malformed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace tproxy::netlink
