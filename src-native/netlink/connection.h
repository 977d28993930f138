// One netlink socket and the transactions one can have with the kernel through it: a request with its acknowledgement,
// a dump, a batch. Bytes in, bytes out; errors are netlink::Error with what the extended ack tells.
#pragma once
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "netlink/error.h"
#include "netlink/message.h"
#include "unique_fd.h"

namespace tproxy::netlink {

// Of the port ids that show their process: the bits of its id (PID_MAX_LIMIT), and how many a process can have. Those
// that the kernel makes up when a process has more have the highest bit set.
inline constexpr unsigned processIdBits = 22;
inline constexpr uint32_t portsOfProcess = 1 << (31 - processIdBits);

// A batch as it goes out: every message, and for each the index of the operation that it belongs to (none: begin, end).
struct Batch {
  std::vector<Message> messages;
  std::vector<std::optional<size_t>> operations;
};

// Safe to use from several threads: transactions run one after the other.
class Connection {
 public:
  // `protocol` is NETLINK_ROUTE or NETLINK_NETFILTER; an empty `netns` is the calling thread's own namespace.
  Connection(int protocol, const std::string& netns);

  uint32_t portId() const { return portId_; }
  // Stays the connection's.
  int descriptor() const { return fd_.get(); }

  // What a dump is where the kernel does not have what it is of: a table (ENOENT), or a family (booted with ipv6.disable=1).
  enum class Missing { fails, isEmpty };

  // Sends a request and waits until the kernel says that it is done.
  void execute(const std::string& operation, Message request);
  // Sends requests in one piece and waits until the kernel says that it is done with all of them. It works them off one
  // by one, and goes on behind one that fails: the error names each of those by its index.
  void executeAll(const std::string& operation, std::vector<Message> requests);
  // Sends a request that is answered with one message.
  Bytes get(const std::string& operation, Message request);
  // Sends a request that is answered with one message for each thing that it asks for.
  std::vector<Bytes> getEach(const std::string& operation, Message request);
  // Sends a request that is answered with any number of messages. If what is listed changes meanwhile the dump is
  // begun anew, up to ten times within 0.2 s; the error is then EINTR.
  std::vector<Bytes> dump(const std::string& operation, Message request, Missing missing = Missing::fails);
  // The same for what changes without the kernel's marking the dump, since it goes on with the next part by counting:
  // `group` (RTNLGRP_...) tells every change, so a dump during which it is silent is whole.
  std::vector<Bytes> dumpWatching(unsigned group, const std::string& operation, Message request, Missing missing);
  // Sends a batch in one piece and collects every error in it. nf_tables works it off inside sendmsg(2), so silence
  // afterwards is success.
  void commit(const std::string& operation, Batch batch);

 private:
  enum class Wait { no, yes };

  void send(const std::string& operation, const char* request, ByteView bytes);
  Bytes receive(const std::string& operation, const Message& request);
  int tryReceive(Wait wait, Bytes& datagram);
  void drain();
  void trace(const char* direction, ByteView datagram) const;
  std::vector<Bytes> collect(const std::string& operation, Message& request, Missing missing);
  std::optional<std::vector<Bytes>> collectOnce(const std::string& operation, Message& request, Missing missing);
  uint32_t nextSequence();

  UniqueFd fd_;
  uint32_t portId_ = 0;
  uint32_t sequence_ = 0;
  bool notified_ = false;  // a multicast message has come
  Bytes buffer_;           // what is received goes in here first
  size_t sendBuffer_ = 0;  // as set
  bool traced_;
  std::mutex transaction_;
};

}  // namespace tproxy::netlink
