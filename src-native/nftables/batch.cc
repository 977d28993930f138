#include "nftables/batch.h"

#include <arpa/inet.h>

#include <algorithm>
#include <stdexcept>

namespace tproxy::nftables {

using netlink::Encoder;
using netlink::Message;

namespace {

constexpr Named nftables(Named message) {
  return {static_cast<uint16_t>(NFNL_SUBSYS_NFTABLES << 8 | message.value), message.name};
}

Message boundary(Named type) {
  return {type, NLM_F_REQUEST,
          nfgenmsg{.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(NFNL_SUBSYS_NFTABLES)}};
}

template <class T>
uint16_t flagsOf(Verb verb) {
  if (verb == Verb::erase) return 0;
  if (verb == Verb::eraseEmpty) return NLM_F_NONREC;
  // nft sends a new table without NLM_F_CREATE, which the kernel does not ask for there.
  uint16_t flags = Is<T, Table> ? 0 : NLM_F_CREATE;
  if (Is<T, Rule> && verb != Verb::insert) flags |= NLM_F_APPEND;
  if (verb == Verb::create) flags |= NLM_F_EXCL;
  return flags;
}

// Flushing deletes what is in the object: rules without a handle, elements without a list.
Message flush(const Table& table) {
  Message message = newMessage(Rule::messages.erase, 0, table.family);
  Encoder(message).write(NETLINK_NAMED(NFTA_RULE_TABLE), table.name, text);
  return message;
}
Message flush(const Chain& chain) {
  Message message = newMessage(Rule::messages.erase, 0, chain.family);
  Encoder(message).write(NETLINK_NAMED(NFTA_RULE_TABLE), chain.table, text);
  Encoder(message).write(NETLINK_NAMED(NFTA_RULE_CHAIN), chain.name, text);
  return message;
}
Message flush(const Set& set) {
  Message message = newMessage(Elements::messages.erase, 0, set.family);
  Encoder(message).write(NETLINK_NAMED(NFTA_SET_ELEM_LIST_SET), set.name, text);
  Encoder(message).write(NETLINK_NAMED(NFTA_SET_ELEM_LIST_TABLE), set.table, text);
  return message;
}
template <class T>
Message flush(const T&) {
  throw std::invalid_argument("only tables, chains and sets can be flushed");
}

// More than one message only for elements, when they do not fit an attribute.
template <class T>
void encode(Verb verb, const T& object, std::vector<Message>& messages) {
  if (verb == Verb::flush) {
    messages.push_back(flush(object));
    return;
  }
  const bool erase = verb == Verb::erase || verb == Verb::eraseEmpty;
  netlink::Slice slice;
  do {
    slice.first = slice.next;
    Message& message =
        messages.emplace_back(newMessage(erase ? T::messages.erase : T::messages.add, flagsOf<T>(verb), object.family));
    Encoder encoder(message, erase ? Encoder::Purpose::erase : Encoder::Purpose::add,
                    Is<T, Elements> ? &slice : nullptr);
    describe(encoder, object);
    if constexpr (Is<T, Elements>)
      if (slice.next == slice.first && slice.next < object.elements.size())
        throw netlink::Error("encode", {.errnum = EMSGSIZE, .request = message.request()});
  } while ([&] {
    if constexpr (Is<T, Elements>) return slice.next < object.elements.size();
    return false;
  }());
}

}  // namespace

Message newMessage(Named type, uint16_t flags, uint8_t family) {
  return {nftables(type), static_cast<uint16_t>(NLM_F_REQUEST | flags),
          nfgenmsg{.nfgen_family = family, .version = NFNETLINK_V0, .res_id = 0}};
}

namespace {

// The kernel wants every new set to have an id; those that nothing refers to by it get one here.
void numberSets(std::vector<Operation>& operations) {
  uint32_t last = 0;
  for (const Operation& operation : operations)
    if (const auto* set = std::get_if<Set>(&operation.object)) last = std::max(last, set->id.value_or(0));
  for (Operation& operation : operations)
    if (auto* set = std::get_if<Set>(&operation.object); set && !set->id) set->id = ++last;
}

}  // namespace

netlink::Batch encodeBatch(std::vector<Operation> operations, const BatchOptions& options) {
  numberSets(operations);
  netlink::Batch batch;
  Message& begin = batch.messages.emplace_back(boundary(NETLINK_NAMED(NFNL_MSG_BATCH_BEGIN)));
  if (options.generation) Encoder(begin).write(NETLINK_NAMED(NFNL_BATCH_GENID), *options.generation, be32);
  batch.operations.emplace_back();
  for (size_t index = 0; index < operations.size(); ++index) {
    std::visit([&](const auto& object) { encode(operations[index].verb, object, batch.messages); },
               operations[index].object);
    batch.operations.resize(batch.messages.size(), index);
  }
  if (!options.dryRun) {
    batch.messages.push_back(boundary(NETLINK_NAMED(NFNL_MSG_BATCH_END)));
    batch.operations.emplace_back();
  }
  uint32_t sequence = 0;
  for (Message& message : batch.messages) message.header().nlmsg_seq = sequence++;
  return batch;
}

namespace {

template <class T>
Verb verbOf(uint16_t flags) {
  if (flags & NLM_F_EXCL) return Verb::create;
  // What the kernel lists has none of these flags.
  return Is<T, Rule> && (flags & NLM_F_CREATE) && !(flags & NLM_F_APPEND) ? Verb::insert : Verb::add;
}

template <size_t index = 0>
Operation decode(const netlink::Received& message) {
  if constexpr (index == std::variant_size_v<Object>) {
    netlink::malformed("not about an nf_tables object");
  } else {
    using T = std::variant_alternative_t<index, Object>;
    const bool erase = message.header.nlmsg_type == nftables(T::messages.erase).value;
    if (erase || message.header.nlmsg_type == nftables(T::messages.add).value) {
      T object;
      ByteView payload = message.payload;
      object.family = netlink::readHeader<nfgenmsg>(payload).nfgen_family;
      netlink::Decoder decoder(payload);
      describe(decoder, object);
      if (decoder.other) netlink::malformed("an object of another type");
      // A deletion only names the object, or what it is in.
      if (decoder.missing && !erase) netlink::malformed(std::string(decoder.missing) + " is missing");
      const uint16_t flags = message.header.nlmsg_flags;
      if (erase) return {flags & NLM_F_NONREC ? Verb::eraseEmpty : Verb::erase, std::move(object)};
      return {verbOf<T>(flags), std::move(object)};
    }
    return decode<index + 1>(message);
  }
}

}  // namespace

Operation decodeOperation(ByteView bytes) { return decode(netlink::readMessage(bytes)); }

}  // namespace tproxy::nftables
