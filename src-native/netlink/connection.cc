#include "netlink/connection.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "netlink/describe.h"
#include "socket/netns.h"

namespace tproxy::netlink {

namespace {

constexpr int dumpAttempts = 10;
// The kernel answers before sendmsg(2) returns or, for the later parts of a dump, when the part before is read. Waiting
// longer than this means that an answer was lost.
constexpr int answerTimeoutMs = 10'000;
// Room for the errors of a batch in which everything is wrong, and for large parts of dumps. The kernel counts about
// 1 KiB for each acknowledgement.
constexpr int receiveBuffer = 8 << 20;
// The kernel makes parts of dumps of 32 KiB; a larger one holds a single message.
constexpr size_t datagramSize = 64 << 10;

// Larger than the system's limit where we may (CAP_NET_ADMIN in the first user namespace), up to that limit otherwise.
void setBuffer(int fd, int force, int option, int size) {
  if (::setsockopt(fd, SOL_SOCKET, force, &size, sizeof size) != 0)
    ::setsockopt(fd, SOL_SOCKET, option, &size, sizeof size);
}

[[noreturn]] void fail(const std::string& operation, int errnum, const char* request,
                       std::optional<std::string> extack = {}) {
  throw Error(operation, {.errnum = errnum, .request = request, .extack = std::move(extack)});
}

[[noreturn]] void failInterrupted(const std::string& operation, const Message& request) {
  fail(operation, EINTR, request.request(),
       "changed by somebody else during each of " + std::to_string(dumpAttempts) + " dumps");
}

// Who changes many things takes longer over it than ten dumps: after the first failure they take 0.2 s.
void letOthersFinish(int attempt) {
  const int step = std::max(0, attempt - 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(step * step));
}

struct ExtendedAck {
  std::optional<uint32_t> offset;
  std::optional<std::string> message;
};
void describe(auto& visit, Is<ExtendedAck> auto& ack) {
  visit("", NETLINK_NAMED(NLMSGERR_ATTR_MSG), ack.message, text);
  visit("", NETLINK_NAMED(NLMSGERR_ATTR_OFFS), ack.offset, host32);
}

Refusal refusalOf(int errnum, ByteView extendedAck, const Message& request) {
  ExtendedAck ack;
  decodeInto(extendedAck, ack);
  Refusal refusal{.errnum = errnum, .request = request.request(), .extack = ack.message};
  if (const char* attribute = ack.offset ? request.attributeAt(*ack.offset) : nullptr) refusal.attribute = attribute;
  return refusal;
}

// What NLMSG_ERROR says: nothing when it is an acknowledgement. The request is echoed behind the error, whole when it
// failed and the kernel did not cap it, its header only otherwise; the extended ack follows that.
std::optional<Refusal> readError(const Received& message, const Message& request) {
  ByteView rest = message.payload;
  if (rest.size() < sizeof(nlmsgerr)) malformed("error message cut off");
  nlmsgerr error;
  std::memcpy(&error, rest.data(), sizeof error);
  if (error.error == 0) return {};
  size_t echo = sizeof(nlmsghdr);
  if (!(message.header.nlmsg_flags & NLM_F_CAPPED)) echo = std::max<size_t>(echo, NLMSG_ALIGN(error.msg.nlmsg_len));
  rest = rest.subspan(offsetof(nlmsgerr, msg));
  if (!(message.header.nlmsg_flags & NLM_F_ACK_TLVS))
    rest = {};
  else if (echo > rest.size())
    malformed("echoed request cut off");
  else
    rest = rest.subspan(echo);
  return refusalOf(-error.error, rest, request);
}

// The same for NLMSG_DONE, the end of a dump, which carries an error of its own.
std::optional<Refusal> readDone(const Received& message, const Message& request) {
  int error = 0;
  if (message.payload.size() < sizeof error) return {};
  std::memcpy(&error, message.payload.data(), sizeof error);
  if (error >= 0) return {};
  const bool extended = message.header.nlmsg_flags & NLM_F_ACK_TLVS;
  return refusalOf(-error, extended ? message.payload.subspan(NLMSG_ALIGN(sizeof error)) : ByteView(), request);
}

// Hears a multicast group for as long as it lives.
class Membership {
 public:
  Membership(int fd, unsigned group) : fd_(fd), group_(group) {
    ::setsockopt(fd_, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group_, sizeof group_);
  }
  ~Membership() { ::setsockopt(fd_, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &group_, sizeof group_); }
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

 private:
  const int fd_;
  const unsigned group_;
};

// The port id shows the process (libnl's convention): its id, which the kernel gives to its first socket too, with a
// number in the bits that no process id has. Gives it.
uint32_t bindSocket(int fd) {
  sockaddr_nl self{.nl_family = AF_NETLINK};
  for (uint32_t number = 0; number < portsOfProcess; ++number) {
    self.nl_pid = static_cast<uint32_t>(::getpid()) + (number << processIdBits);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&self), sizeof self) == 0) return self.nl_pid;
    if (errno != EADDRINUSE) fail("open netlink socket", errno, "bind");
  }
  self.nl_pid = 0;  // any that is free
  socklen_t length = sizeof self;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&self), sizeof self) != 0) fail("open netlink socket", errno, "bind");
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&self), &length) != 0)
    fail("open netlink socket", errno, "getsockname");
  return self.nl_pid;
}

}  // namespace

Connection::Connection(int protocol, const std::string& netns) {
  inNetns(netns, [&] {
    fd_.reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
    if (!fd_)
      fail("open netlink socket", errno,
           protocol == NETLINK_NETFILTER ? "socket NETLINK_NETFILTER" : "socket NETLINK_ROUTE");
  });
  portId_ = bindSocket(fd_.get());

  const int on = 1;
  for (const int option : {NETLINK_EXT_ACK, NETLINK_CAP_ACK})  // before Linux 4.12: no extended acks, whole echoes
    ::setsockopt(fd_.get(), SOL_NETLINK, option, &on, sizeof on);
  if (protocol == NETLINK_ROUTE)  // before Linux 4.20: dumps are not filtered by the kernel, our callers filter again
    ::setsockopt(fd_.get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on);
  setBuffer(fd_.get(), SO_RCVBUFFORCE, SO_RCVBUF, receiveBuffer);
  buffer_.resize(datagramSize);

  const char* debug = std::getenv("LINUX_TPROXY_DEBUG");
  traced_ = debug && std::string_view(debug).find("netlink") != std::string_view::npos;
}

uint32_t Connection::nextSequence() { return ++sequence_; }

void Connection::send(const std::string& operation, const char* request, ByteView bytes) {
  trace(">", bytes);
  const sockaddr_nl kernel{.nl_family = AF_NETLINK};
  ssize_t sent;
  do {
    sent =
        ::sendto(fd_.get(), bytes.data(), bytes.size(), 0, reinterpret_cast<const sockaddr*>(&kernel), sizeof kernel);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return;
  if (errno == EMSGSIZE)
    fail(operation, EMSGSIZE, request,
         std::to_string(bytes.size()) +
             " bytes are more than the socket's send buffer holds (sysctl net.core.wmem_max)");
  fail(operation, errno, request);
}

// One datagram of the kernel's; others' are dropped. Gives 0 or an errno: EAGAIN when nothing is there, ETIMEDOUT when
// nothing came in time, EMSGSIZE when it did not fit (the next of that size will).
int Connection::tryReceive(Wait wait, Bytes& datagram) {
  for (;;) {
    sockaddr_nl sender{};
    iovec buffer{.iov_base = buffer_.data(), .iov_len = buffer_.size()};
    msghdr header{.msg_name = &sender, .msg_namelen = sizeof sender, .msg_iov = &buffer, .msg_iovlen = 1};
    const ssize_t size = ::recvmsg(fd_.get(), &header, MSG_DONTWAIT | MSG_TRUNC);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && errno == EAGAIN && wait == Wait::yes) {
      pollfd readable{.fd = fd_.get(), .events = POLLIN, .revents = 0};
      if (::poll(&readable, 1, answerTimeoutMs) == 0) return ETIMEDOUT;
      continue;
    }
    if (size < 0) return errno;
    if (header.msg_flags & MSG_TRUNC) {
      buffer_.resize(static_cast<size_t>(size));
      return EMSGSIZE;
    }
    if (header.msg_namelen != sizeof sender || sender.nl_pid != 0) continue;
    if (sender.nl_groups != 0) {  // not an answer, whatever its sequence number
      notified_ = true;
      continue;
    }
    datagram.assign(buffer_.begin(), buffer_.begin() + size);
    trace("<", datagram);
    return 0;
  }
}

Bytes Connection::receive(const std::string& operation, const Message& request) {
  Bytes datagram;
  if (const int errnum = tryReceive(Wait::yes, datagram)) fail(operation, errnum, request.request());
  return datagram;
}

// After a failure in mid-answer: the rest of it must not be taken for the next answer, and a dump that is not read to
// its end would make the next one fail with EBUSY.
void Connection::drain() {
  Bytes datagram;
  int errnum;
  do errnum = tryReceive(Wait::no, datagram);
  while (errnum == 0 || errnum == ENOBUFS);
}

void Connection::execute(const std::string& operation, Message request) {
  request.header().nlmsg_flags |= NLM_F_ACK;
  get(operation, std::move(request));
}

void Connection::executeAll(const std::string& operation, std::vector<Message> requests) {
  if (requests.empty()) return;
  const std::lock_guard lock(transaction_);
  const uint32_t first = sequence_ + 1;
  Bytes bytes;
  for (Message& request : requests) {
    request.header().nlmsg_flags |= NLM_F_ACK;
    request.header().nlmsg_seq = nextSequence();
    bytes.insert(bytes.end(), request.bytes().begin(), request.bytes().end());
  }
  send(operation, requests.front().request(), bytes);
  std::vector<Error::Indexed> errors;
  size_t answered = 0;
  try {
    while (answered < requests.size()) {
      const Bytes datagram = receive(operation, requests[answered]);
      for (ByteView rest = datagram; !rest.empty();) {
        const Received message = readMessage(rest);
        // In the order of the requests.
        const uint32_t index = message.header.nlmsg_seq - first;
        if (message.header.nlmsg_type != NLMSG_ERROR || index < answered || index >= requests.size()) continue;
        if (index > answered) fail(operation, ENOBUFS, requests[answered].request());
        if (const auto refusal = readError(message, requests[index])) errors.push_back({index, *refusal});
        ++answered;
      }
    }
  } catch (const Error& error) {  // an answer was lost: what became of these nobody knows
    drain();
    for (; answered < requests.size(); ++answered) {
      Refusal unknown = error.refusal;
      unknown.request = requests[answered].request();
      errors.push_back({answered, unknown});
    }
  } catch (const Malformed&) {
    drain();
    throw;
  }
  if (!errors.empty()) {
    const Refusal refusal = errors.front().refusal;
    throw Error(operation, refusal, std::move(errors));
  }
}

Bytes Connection::get(const std::string& operation, Message request) {
  const std::lock_guard lock(transaction_);
  request.header().nlmsg_seq = nextSequence();
  send(operation, request.request(), request.bytes());
  try {
    for (;;) {
      const Bytes datagram = receive(operation, request);
      for (ByteView rest = datagram; !rest.empty();) {
        const Received message = readMessage(rest);
        if (message.header.nlmsg_seq != sequence_) continue;
        if (message.header.nlmsg_type != NLMSG_ERROR) return Bytes(message.whole.begin(), message.whole.end());
        if (auto refusal = readError(message, request)) throw Error(operation, *refusal);
        return {};
      }
    }
  } catch (const Malformed&) {
    drain();
    throw;
  }
}

std::vector<Bytes> Connection::getEach(const std::string& operation, Message request) {
  request.header().nlmsg_flags |= NLM_F_ACK;  // which ends the answer
  return collect(operation, request, Missing::fails);
}

std::vector<Bytes> Connection::dump(const std::string& operation, Message request, Missing missing) {
  request.header().nlmsg_flags |= NLM_F_DUMP;
  return collect(operation, request, missing);
}

std::vector<Bytes> Connection::collect(const std::string& operation, Message& request, Missing missing) {
  const std::lock_guard lock(transaction_);
  for (int attempt = 0; attempt < dumpAttempts; ++attempt) {
    letOthersFinish(attempt);
    if (auto messages = collectOnce(operation, request, missing)) return std::move(*messages);
  }
  failInterrupted(operation, request);
}

std::vector<Bytes> Connection::dumpWatching(unsigned group, const std::string& operation, Message request,
                                            Missing missing) {
  request.header().nlmsg_flags |= NLM_F_DUMP;
  const std::lock_guard lock(transaction_);
  const Membership membership(fd_.get(), group);
  for (int attempt = 0; attempt < dumpAttempts; ++attempt) {
    letOthersFinish(attempt);
    drain();
    notified_ = false;
    // What changed before the kernel wrote the dump's end is in the queue before that end.
    auto messages = collectOnce(operation, request, missing);
    if (messages && !notified_) return std::move(*messages);
  }
  failInterrupted(operation, request);
}

// Nothing when the dump is inconsistent or parts of the answer were lost.
std::optional<std::vector<Bytes>> Connection::collectOnce(const std::string& operation, Message& request,
                                                          Missing missing) {
  request.header().nlmsg_seq = nextSequence();
  send(operation, request.request(), request.bytes());
  std::vector<Bytes> messages;
  bool interrupted = false;
  const auto check = [&](const std::optional<Refusal>& refusal) {
    if (!refusal) return;
    if (missing == Missing::fails || (refusal->errnum != ENOENT && refusal->errnum != EAFNOSUPPORT))
      throw Error(operation, *refusal);
  };
  try {
    for (;;) {
      const Bytes datagram = receive(operation, request);
      for (ByteView rest = datagram; !rest.empty();) {
        const Received message = readMessage(rest);
        if (message.header.nlmsg_seq != sequence_) continue;
        interrupted |= (message.header.nlmsg_flags & NLM_F_DUMP_INTR) != 0;
        if (message.header.nlmsg_type == NLMSG_ERROR) {
          const auto refusal = readError(message, request);
          check(refusal);
          if (refusal || request.header().nlmsg_flags & NLM_F_ACK) return messages;
        } else if (message.header.nlmsg_type == NLMSG_DONE) {
          check(readDone(message, request));
          if (interrupted) return {};
          return messages;
        } else if (message.header.nlmsg_type >= NLMSG_MIN_TYPE) {
          messages.emplace_back(message.whole.begin(), message.whole.end());
        }
      }
    }
  } catch (const Error& error) {
    drain();
    if (error.refusal.errnum == ENOBUFS || error.refusal.errnum == EMSGSIZE) return {};
    throw;
  } catch (const Malformed&) {
    drain();
    throw;
  }
}

void Connection::commit(const std::string& operation, Batch batch) {
  const std::lock_guard lock(transaction_);
  const uint32_t first = sequence_ + 1;
  Bytes bytes;
  for (Message& message : batch.messages) {
    message.header().nlmsg_seq = nextSequence();
    bytes.insert(bytes.end(), message.bytes().begin(), message.bytes().end());
  }
  // The kernel keeps a little of the buffer for itself and copies the whole batch into it.
  if (bytes.size() + 4096 > sendBuffer_) {
    sendBuffer_ = std::max<size_t>(bytes.size() + 4096, 1 << 18);
    setBuffer(fd_.get(), SO_SNDBUFFORCE, SO_SNDBUF, static_cast<int>(sendBuffer_));
  }
  send(operation, batch.messages.front().request(), bytes);

  std::vector<Error::Indexed> errors;
  std::optional<Refusal> outside;  // of the batch as a whole
  Bytes datagram;
  for (;;) {
    const int errnum = tryReceive(Wait::no, datagram);
    if (errnum == EAGAIN) break;
    if (errnum != 0) {
      // ENOBUFS: more errors than the buffer holds. Those that came are told all the same.
      outside = Refusal{.errnum = errnum, .request = batch.messages.front().request()};
      if (errnum == ENOBUFS) continue;
      break;
    }
    for (ByteView rest = datagram; !rest.empty();) {
      const Received message = readMessage(rest);
      const uint32_t position = message.header.nlmsg_seq - first;
      if (message.header.nlmsg_type != NLMSG_ERROR || position >= batch.messages.size()) continue;
      const auto refusal = readError(message, batch.messages[position]);
      if (!refusal) continue;
      if (const auto index = batch.operations[position])
        errors.push_back({*index, *refusal});
      else
        outside = refusal;
    }
  }
  if (!errors.empty() && (!outside || outside->errnum == ENOBUFS)) outside = errors.front().refusal;
  if (outside) throw Error(operation, *outside, std::move(errors));
}

void Connection::trace(const char* direction, ByteView datagram) const {
  if (!traced_) return;
  std::string out;
  try {
    while (!datagram.empty()) {
      const Received message = readMessage(datagram);
      char line[128];
      std::snprintf(line, sizeof line, "netlink %08x %s type %#x flags %#x seq %u length %u", portId_, direction,
                    message.header.nlmsg_type, message.header.nlmsg_flags, message.header.nlmsg_seq,
                    message.header.nlmsg_len);
      out += line;
      for (size_t i = 0; i < message.payload.size(); ++i) {
        std::snprintf(line, sizeof line, "%s%02x", i % 32 == 0 ? "\n    " : i % 4 == 0 ? " " : "", message.payload[i]);
        out += line;
      }
      out += '\n';
    }
  } catch (const Malformed&) {
    out += "(not a message)\n";
  }
  std::fputs(out.c_str(), stderr);
}

}  // namespace tproxy::netlink
