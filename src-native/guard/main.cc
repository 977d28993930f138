// The small process beside Node's, in one of two roles, by the name that it is run under. As the broker it does what
// broker/serve.h says.
//
// The guard: a process whose only work is to outlive another. The kernel deletes an owned nf_tables table when its
// owner dies, but keeps policy rules, routes and rules in tables of iptables; the guard deletes those. A table that
// outlives its owner (persist) it leaves for a while to whoever takes it over, and then deletes it, too. It is started
// with a pipe as standard input, whose other end its parent holds open for life, with netlink sockets as standard output
// and standard error, and with memory in which its parent writes what to do. So it needs no namespace, no file and no
// argument (the one that it gets is for the eyes of `ps`), and links with libc only.
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <string_view>

#include "broker/serve.h"
#include "guard/process.h"

namespace {

using tproxy::guard::Header;
using tproxy::guard::Orders;
using tproxy::guard::Preface;
using tproxy::guard::Socket;
using tproxy::guard::Work;

// Somebody may take the table over and die within the grace: that is a new grace, with a guard of its own. This is how
// short a life may be to be overlooked.
constexpr long lookEveryMs = 100;
// Whoever has the lock needs it for a few milliseconds. If he hangs, it is done without.
constexpr long lockEveryMs = 5;
constexpr int lockTries = 200;

struct Bytes {
  const char* data;
  size_t size;
};

// The kernel works it off inside this call.
bool tell(int socket, Bytes requests) { return send(socket, requests.data, requests.size, 0) >= 0; }
bool tell(Socket socket, Bytes requests) { return tell(static_cast<int>(socket), requests); }

// The kernel answers a batch with its errors only.
bool commit(int socket, Bytes batch) {
  char answer[sizeof(nlmsghdr)];
  return tell(socket, batch) && recv(socket, answer, sizeof answer, MSG_DONTWAIT) < 0;
}

void sleepFor(long milliseconds) {
  const timespec pause{.tv_sec = 0, .tv_nsec = milliseconds * 1'000'000};
  nanosleep(&pause, nullptr);
}

// Of a message that tells of a table: the netlink port that it belongs to, 0 for none.
unsigned ownerOf(Bytes message) {
  for (size_t at = NLMSG_LENGTH(sizeof(nfgenmsg)); at + sizeof(nlattr) <= message.size;) {
    nlattr attribute;
    std::memcpy(&attribute, message.data + at, sizeof attribute);
    if (attribute.nla_len < sizeof attribute) break;
    if ((attribute.nla_type & NLA_TYPE_MASK) == NFTA_TABLE_OWNER && at + NLA_HDRLEN + 4 <= message.size) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(message.data + at + NLA_HDRLEN);
      return static_cast<unsigned>(bytes[0]) << 24 | static_cast<unsigned>(bytes[1]) << 16 |
             static_cast<unsigned>(bytes[2]) << 8 | bytes[3];
    }
    at += NLA_ALIGN(attribute.nla_len);
  }
  return 0;
}

// Whether it is orphaned, or will be: its owner may be dying this moment.
bool isOrphan(Bytes question, unsigned owner) {
  if (!tell(Socket::nftables, question)) return false;
  alignas(nlmsghdr) static char answer[8192];
  const ssize_t size = recv(static_cast<int>(Socket::nftables), answer, sizeof answer, 0);
  nlmsghdr header;
  if (size < static_cast<ssize_t>(sizeof header)) return false;
  std::memcpy(&header, answer, sizeof header);
  if (header.nlmsg_type != (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE)) return false;  // an error: it is gone
  const unsigned found = ownerOf({answer, static_cast<size_t>(size)});
  return found == 0 || found == owner;
}

// Owned by this process nobody can take it over any more. Refused: somebody was faster.
bool takeOver(Bytes request) { return commit(static_cast<int>(Socket::nftables), request); }

bool outlastsGrace(const Preface& orphan, Bytes question) {
  timespec until{};
  clock_gettime(CLOCK_BOOTTIME, &until);
  until.tv_sec += orphan.graceMs / 1000;
  until.tv_nsec += static_cast<long>(orphan.graceMs % 1000) * 1'000'000;
  for (;;) {
    if (!isOrphan(question, orphan.owner)) return false;
    timespec now{};
    clock_gettime(CLOCK_BOOTTIME, &now);
    const long left = (until.tv_sec - now.tv_sec) * 1000 + (until.tv_nsec - now.tv_nsec) / 1'000'000;
    if (left <= 0) return true;
    sleepFor(left < lookEveryMs ? left : lookEveryMs);
  }
}

bool hasOneOf(Bytes words, std::string_view text) {
  std::string_view rest{words.data, words.size};
  for (size_t end; (end = rest.find('\n')) != rest.npos; rest.remove_prefix(end + 1))
    if (text.find(rest.substr(0, end)) != text.npos) return true;
  return false;
}

// Whether somebody else has begun to use what this is about to delete, and has cleared away what there was himself. What
// cannot be known is taken for a no.
bool isInherited(int socket, Bytes words, unsigned owner) {
  struct {
    nlmsghdr header;
    nfgenmsg family;
  } question{};
  question.header.nlmsg_len = sizeof question;
  question.header.nlmsg_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE;
  question.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  if (send(socket, &question, sizeof question, 0) < 0) return false;
  alignas(nlmsghdr) static char answer[32768];  // NLMSG_GOODSIZE at most
  for (;;) {
    const ssize_t size = recv(socket, answer, sizeof answer, 0);
    if (size <= 0) return false;
    nlmsghdr header;
    for (size_t at = 0; at + sizeof header <= static_cast<size_t>(size); at += NLMSG_ALIGN(header.nlmsg_len)) {
      std::memcpy(&header, answer + at, sizeof header);
      if (header.nlmsg_type != (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE)) return false;  // the end, or an error
      const Bytes message{answer + at, header.nlmsg_len};
      if (ownerOf(message) != owner && hasOneOf(words, {message.data, message.size})) return true;
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  // Out of the way of its parent's terminal, directory and inherited files. Its signals are blocked since before it
  // began (see Process): whatever ends the parent must not end it.
  setsid();
  if (chdir("/") != 0) return 1;
  const bool isBroker = count > 0 && std::strstr(arguments[0], "broker");
  const void* memory =
      isBroker ? nullptr : mmap(nullptr, sizeof(Orders), PROT_READ, MAP_SHARED, tproxy::guard::ordersDescriptor, 0);
  syscall(SYS_close_range, 3U, ~0U, 0U);
  if (isBroker) return tproxy::broker::serve();
  if (memory == MAP_FAILED) return 1;

  char none;
  for (ssize_t size; (size = read(STDIN_FILENO, &none, sizeof none)) != 0;)
    if (size < 0 && errno != EINTR) return 1;
  // The parent is gone.
  const auto* orders = static_cast<const Orders*>(memory);
  const unsigned current = orders->current;
  if (current == Orders::nothing) return 0;
  const Work& work = orders->work[current];
  const Preface& preface = work.preface;
  const Bytes question{work.bytes, preface.question};
  const Bytes takeover{question.data + question.size, preface.takeover};
  const Bytes words{takeover.data + takeover.size, preface.words};
  const Bytes lock{words.data + words.size, preface.lock};

  if (question.size != 0) {
    // The parent may live on, having let go of the table: it is not to wait for the rest.
    if (fork() != 0) return 0;
    if (!outlastsGrace(preface, question) || !takeOver(takeover)) return 0;
  }
  if (words.size != 0) {
    // Stays open: what `lock` makes is there until this process ends.
    const int socket = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    for (int tries = 0; lock.size != 0 && !commit(socket, lock) && tries < lockTries; ++tries) sleepFor(lockEveryMs);
    if (isInherited(socket, words, preface.owner)) return 0;
  }
  // The kernel works each datagram off inside the call. A request that fails (for what it is about is gone already) does
  // not keep it from the next one. The answers are for nobody.
  int failed = 0;
  Header header{};
  for (size_t at = question.size + takeover.size + words.size + lock.size; at < preface.length; at += header.length) {
    std::memcpy(&header, work.bytes + at, sizeof header);
    at += sizeof header;
    if (header.length > 0 && !tell(header.socket, {work.bytes + at, header.length})) failed = 1;
  }
  return failed;
}
