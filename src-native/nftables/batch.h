// Changes of the rule set: operations on objects, put into one batch, all or nothing.
#pragma once
#include <linux/netfilter/nfnetlink.h>

#include <optional>
#include <vector>

#include "netlink/connection.h"
#include "nftables/object.h"

namespace tproxy::nftables {

enum class Verb { add, create, insert, erase, eraseEmpty, flush };

struct Operation {
  Verb verb;
  Object object = {};
};

// The whole batch. With a generation the kernel refuses it (ERESTART) once the rule set has changed since. Without its
// end a batch is checked, as far as the kernel checks before it commits, and then forgotten.
struct BatchOptions {
  std::optional<uint32_t> generation;
  bool dryRun = false;
};
netlink::Batch encodeBatch(std::vector<Operation> operations, const BatchOptions& options);

// Reads one message of a batch or of a dump (begin and end of a batch are none).
Operation decodeOperation(ByteView message);

// One message to nf_tables, without attributes yet.
netlink::Message newMessage(Named type, uint16_t flags, uint8_t family);

}  // namespace tproxy::nftables
