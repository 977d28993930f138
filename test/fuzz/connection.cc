// A kernel that lies: answers every transaction of netlink::Connection, and spoils the answers at random (cut, changed,
// repeated, lost, from somebody else, out of turn, with interruptions). For a build with sanitizers:
//     cmake -S . -B build/sanitize -DSANITIZE=ON && cmake --build build/sanitize --target fuzz_connection
//     build/sanitize/fuzz_connection 20000 [SEED]
// No crash, no hang, and no wrong success: what is told as done was done, and what is listed is what was there. The
// system calls are replaced at link time (-Wl,--wrap), so the core is what it is everywhere.
#include "netlink/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>

#include "nftables/batch.h"
#include "nftables/query.h"
#include "rtnetlink/change.h"
#include "rtnetlink/rule.h"

using namespace tproxy;
using netlink::Bytes;

namespace {

struct Kernel {
  struct Datagram {
    Bytes bytes;
    uint32_t sender = 0, groups = 0;
    int error = 0;  // instead of it
  };

  std::mt19937 random;
  bool spoiling = false;
  std::deque<Datagram> queue;
  int calls = 0;              // system calls of the transaction under way
  int lies = 0;               // what cannot be noticed by anybody: then nothing is claimed
  bool refusing = false;      // whether it refuses requests
  size_t refused = 0;         // messages refused by the last request
  std::vector<Bytes> listed;  // what the last dump had

  unsigned below(unsigned limit) { return limit == 0 ? 0 : static_cast<unsigned>(random() % limit); }
  bool sometimes(unsigned times) { return spoiling && below(times) == 0; }

  Bytes noise(unsigned most) {
    Bytes bytes(below(most));
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<uint8_t>(random()); });
    return bytes;
  }

  void count() {
    if (++calls < 100'000) return;
    std::fprintf(stderr, "fuzz_connection: a transaction that does not end\n");
    std::abort();
  }

  // ---- truth ----------------------------------------------------------------------------------------------------------

  static Bytes message(uint16_t type, uint16_t flags, uint32_t sequence, const Bytes& payload) {
    Bytes bytes(NLMSG_HDRLEN + NLMSG_ALIGN(payload.size()));
    const nlmsghdr header{.nlmsg_len = static_cast<uint32_t>(NLMSG_HDRLEN + payload.size()),
                          .nlmsg_type = type,
                          .nlmsg_flags = flags,
                          .nlmsg_seq = sequence,
                          .nlmsg_pid = 0};
    std::memcpy(bytes.data(), &header, sizeof header);
    if (!payload.empty()) std::memcpy(bytes.data() + NLMSG_HDRLEN, payload.data(), payload.size());
    return bytes;
  }
  static Bytes number(int value) {
    Bytes bytes(sizeof value);
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
  }

  void answer(const nlmsghdr& request, int error) {
    Bytes payload = number(-error);
    const auto* header = reinterpret_cast<const uint8_t*>(&request);
    payload.insert(payload.end(), header, header + sizeof request);
    uint16_t flags = NLM_F_CAPPED;
    if (error != 0 && below(2) == 0) {
      flags |= NLM_F_ACK_TLVS;
      const std::string text = "no";
      const nlattr attribute{.nla_len = static_cast<uint16_t>(sizeof attribute + text.size() + 1),
                             .nla_type = NLMSGERR_ATTR_MSG};
      const auto* start = reinterpret_cast<const uint8_t*>(&attribute);
      payload.insert(payload.end(), start, start + sizeof attribute);
      payload.insert(payload.end(), text.begin(), text.end());
      payload.resize(NLMSG_ALIGN(payload.size() + 1));
    }
    push(message(NLMSG_ERROR, flags, request.nlmsg_seq, payload));
    if (error != 0) ++refused;
  }

  void dump(const nlmsghdr& request) {
    listed.clear();
    const bool interrupted = sometimes(3);
    if (sometimes(8)) return answer(request, EBUSY);
    Bytes part;
    for (unsigned i = below(6); i > 0; --i) {
      const Bytes payload = noise(40);
      const auto flags = static_cast<uint16_t>(NLM_F_MULTI | (interrupted && i == 1 ? NLM_F_DUMP_INTR : 0));
      const Bytes one = message(RTM_NEWRULE, flags, request.nlmsg_seq, payload);
      listed.emplace_back(one.begin(), one.begin() + static_cast<long>(NLMSG_HDRLEN + payload.size()));
      part.insert(part.end(), one.begin(), one.end());
      if (below(3) == 0) push(std::exchange(part, {}));
    }
    if (!part.empty()) push(part);
    push(message(NLMSG_DONE, static_cast<uint16_t>(NLM_F_MULTI | (interrupted ? NLM_F_DUMP_INTR : 0)),
                 request.nlmsg_seq, number(0)));
  }

  static bool asksForOne(uint16_t type) {
    return type == RTM_GETLINK || type == RTM_GETROUTE || type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN) ||
           type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE);
  }

  void each(const nlmsghdr& request) {
    listed.clear();
    for (unsigned i = below(4); i > 0; --i) {
      const Bytes payload = noise(40);
      const Bytes one = message(request.nlmsg_type, 0, request.nlmsg_seq, payload);
      listed.emplace_back(one.begin(), one.begin() + static_cast<long>(NLMSG_HDRLEN + payload.size()));
      push(one);
    }
    answer(request, refusing && below(3) == 0 ? ENOENT : 0);
  }

  void receive(const void* data, size_t size) {
    netlink::ByteView rest(static_cast<const uint8_t*>(data), size);
    refused = 0;
    while (!rest.empty()) {
      const netlink::Received request = netlink::readMessage(rest);
      if ((request.header.nlmsg_flags & NLM_F_DUMP) == NLM_F_DUMP)
        dump(request.header);
      else if (request.header.nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM))
        each(request.header);
      else if (asksForOne(request.header.nlmsg_type))
        push(message(request.header.nlmsg_type, 0, request.header.nlmsg_seq, noise(48)));
      else if (refusing && below(3) == 0)
        answer(request.header, ENOENT);
      else if (request.header.nlmsg_flags & NLM_F_ACK)
        answer(request.header, 0);
    }
  }

  // ---- lies -----------------------------------------------------------------------------------------------------------

  void push(Bytes bytes) {
    Datagram datagram{.bytes = std::move(bytes)};
    if (!sometimes(4)) return queue.push_back(std::move(datagram));
    auto& header = *reinterpret_cast<nlmsghdr*>(datagram.bytes.data());
    switch (below(10)) {
      case 0:  // cut off, in the midst of its last message
        datagram.bytes.resize(datagram.bytes.size() - 1 - below(NLMSG_HDRLEN - 1));
        break;
      case 1:  // a length that cannot be
        header.nlmsg_len =
            below(2) ? below(NLMSG_HDRLEN) : static_cast<uint32_t>(datagram.bytes.size()) + 4 + below(100'000);
        break;
      case 2:
        ++lies;
        header.nlmsg_seq += 1 + below(5);
        break;
      case 3:
        ++lies;
        datagram.sender = 1 + below(1000);
        break;
      case 4:
        ++lies;
        datagram.groups = 1;
        break;
      case 5:  // the queue is full: it is lost, and that is told
        datagram.error = ENOBUFS;
        break;
      case 6:  // lost without a word
        ++lies;
        return;
      case 7:  // twice
        ++lies;
        queue.push_back(datagram);
        break;
      case 8:  // something else before it
        queue.push_back({.bytes = noise(64)});
        break;
      case 9:  // larger than there is room for
        queue.push_back({.bytes = noise(100'000)});
    }
    queue.push_back(std::move(datagram));
  }
};

Kernel kernel;

}  // namespace

extern "C" {

int __real_socket(int domain, int type, int protocol);
int __wrap_socket(int, int, int) { return __real_socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0); }
int __wrap_bind(int, const sockaddr*, socklen_t) { return 0; }
int __wrap_getsockname(int, sockaddr*, socklen_t*) { return 0; }
int __wrap_setsockopt(int, int, int, const void*, socklen_t) { return 0; }

ssize_t __wrap_sendto(int, const void* data, size_t size, int, const sockaddr*, socklen_t) {
  kernel.count();
  if (kernel.sometimes(10)) {
    errno = kernel.below(4) == 0 ? ENOBUFS : EINTR;
    return -1;
  }
  kernel.receive(data, size);
  return static_cast<ssize_t>(size);
}

int __wrap_poll(pollfd* descriptors, nfds_t, int) {
  kernel.count();
  if (kernel.sometimes(10)) {
    errno = EINTR;
    return -1;
  }
  descriptors->revents = POLLIN;
  return kernel.queue.empty() ? 0 : 1;  // nothing comes later: so much time is over
}

ssize_t __wrap_recvmsg(int, msghdr* header, int) {
  kernel.count();
  if (kernel.queue.empty() || kernel.sometimes(20)) {
    errno = kernel.queue.empty() ? EAGAIN : EINTR;
    return -1;
  }
  const Kernel::Datagram datagram = std::move(kernel.queue.front());
  kernel.queue.pop_front();
  if (datagram.error != 0) {
    errno = datagram.error;
    return -1;
  }
  const sockaddr_nl sender{.nl_family = AF_NETLINK, .nl_pid = datagram.sender, .nl_groups = datagram.groups};
  std::memcpy(header->msg_name, &sender, sizeof sender);
  header->msg_namelen = sizeof sender;
  const size_t size = std::min(datagram.bytes.size(), header->msg_iov->iov_len);
  if (size > 0) std::memcpy(header->msg_iov->iov_base, datagram.bytes.data(), size);
  header->msg_flags = size < datagram.bytes.size() ? MSG_TRUNC : 0;
  return static_cast<ssize_t>(datagram.bytes.size());  // MSG_TRUNC
}

}  // extern "C"

namespace {

// Whether it succeeded. What it throws is one of its two errors, or it is a crash.
bool succeeds(auto transaction) {
  kernel.calls = 0;
  kernel.lies = 0;
  try {
    transaction();
    return true;
  } catch (const netlink::Error&) {
    return false;
  } catch (const netlink::Malformed&) {
    return false;
  }
}

[[noreturn]] void wrong(const char* what) {
  std::fprintf(stderr, "fuzz_connection: %s\n", what);
  std::exit(1);
}

const rtnetlink::Rule rule{.family = AF_INET, .action = FR_ACT_TO_TBL, .table = 100, .priority = 97};

// With a kernel that tells the truth everything has to work as well.
void transactions(netlink::Connection& connection) {
  const bool honest = !kernel.spoiling;
  kernel.refusing = kernel.below(2) == 0;
  const auto claims = [&](const char* what, bool succeeded) {
    if (succeeded && kernel.refused > 0 && kernel.lies == 0) wrong(what);
    if (honest && succeeded != (kernel.refused == 0)) wrong(what);
  };
  claims("execute", succeeds([&] { changeRule(connection, rtnetlink::Verb::add, rule); }));
  claims("executeAll",
         succeeds([&] { change(connection, std::vector<rtnetlink::Change>(1 + kernel.below(5), {.object = rule})); }));
  claims("link", succeeds([&] {
           rtnetlink::setLink(connection, {.index = 3},
                              {.up = true, .mtu = 1400, .master = rtnetlink::Device{.index = 4}});
         }));
  kernel.queue.clear();  // the kernel's answers to a batch are all there when it has been sent
  nftables::Operation operation{nftables::Verb::add, nftables::Table{.family = NFPROTO_INET, .name = "t"}};
  claims("commit", succeeds([&] {
           connection.commit("commit batch", nftables::encodeBatch({operation, operation, operation}, {}));
         }));

  std::vector<Bytes> messages;
  const bool got = succeeds(
      [&] { messages = connection.getEach("get", nftables::newMessage(nftables::Elements::messages.get, 0, 0)); });
  claims("getEach", got);
  if (got && kernel.lies == 0 && messages != kernel.listed) wrong("getEach gives what was not answered");

  kernel.refusing = false;
  netlink::Message request(NETLINK_NAMED(RTM_GETRULE), NLM_F_REQUEST, fib_rule_hdr{.family = AF_INET});
  const bool listed = succeeds([&] { messages = connection.dump("list", request); });
  if (honest && !listed) wrong("dump failed");
  if (listed && kernel.lies == 0 && messages != kernel.listed) wrong("dump lists what is not there");

  // What is in the messages is noise: read or refused, but never past the end.
  (void)succeeds([&] { rtnetlink::listRules(connection, {}); });
  (void)succeeds([&] { nftables::list<nftables::Rule>(connection, {}); });
  (void)succeeds([&] { nftables::generation(connection); });
  (void)succeeds([&] { nftables::get<nftables::Table>(connection, {.family = NFPROTO_INET, .name = "t"}); });
  (void)succeeds([&] { nftables::get<nftables::Elements>(connection, {.family = NFPROTO_INET, .table = "t"}); });
  (void)succeeds([&] { nftables::resetCounters(connection, {}); });
  (void)succeeds([&] { rtnetlink::getLink(connection, {.name = "eth0"}); });
  (void)succeeds([&] { rtnetlink::listLinks(connection); });
  (void)succeeds([&] { rtnetlink::listAddresses(connection, {}); });
  (void)succeeds([&] { rtnetlink::getRoute(connection, {.family = AF_INET, .destination = {192, 0, 2, 1}}); });
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 20'000;
  const auto seed = count > 2 ? static_cast<unsigned>(std::strtoul(arguments[2], nullptr, 10)) : std::random_device()();
  std::printf("fuzz_connection %d %u\n", rounds, seed);  // to run the same again
  std::fflush(stdout);
  kernel.random.seed(seed);
  netlink::Connection connection(NETLINK_ROUTE, "");
  for (int round = 0; round < rounds; ++round) {
    kernel.spoiling = kernel.below(8) != 0;
    if (!kernel.spoiling) kernel.queue.clear();
    transactions(connection);
  }
  return 0;
}
