// Load for the benches, cheap enough that the relay is what is measured: one thread, one epoll, every byte checked.
//
//   load serve ECHO_PORT ANSWER_PORT SINK_PORT
//       ECHO_PORT sends back what it gets; ANSWER_PORT takes 1 KiB, gives 1 KiB and closes; SINK_PORT lets the kernel throw away
//       what it gets (MSG_TRUNC) and tells at the end how much that was
//   load rr ADDRESS PORT CONNECTIONS SECONDS     64 bytes there and back, one at a time on each connection
//   load paced ADDRESS PORT PER_SECOND SECONDS   the same on one connection, evenly spaced
//   load short ADDRESS PORT AT_ONCE SECONDS      connect, send 1 KiB, receive 1 KiB, close
//   load stream ADDRESS PORT CONNECTIONS SECONDS to the sink, by sendfile: with the sink the cheapest end points there are
//   load idle ADDRESS PORT CONNECTIONS           64 bytes there and back on each, then nothing until stdin ends
//   load check ADDRESS PORT BYTES                pseudo-random bytes through the echo, in chunks of all sizes, ended by half-close
//
// The clients print one line of JSON; a wrong or missing byte ends them with a word on stderr and status 1.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<unsigned char>;

constexpr std::size_t pingSize = 64;
constexpr std::size_t shortSize = 1024;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "load: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}
int checked(int result, const char* what) {
  if (result < 0) die(what);
  return result;
}

sockaddr_in addressOf(const char* address, const char* port) {
  sockaddr_in to{.sin_family = AF_INET, .sin_port = htons(static_cast<std::uint16_t>(std::atoi(port)))};
  if (inet_pton(AF_INET, address, &to.sin_addr) != 1) die("address");
  return to;
}
int newSocket() {
  const int fd = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}
void watch(int epoll, int fd, std::uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  checked(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}
void rewatch(int epoll, int fd, std::uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  checked(epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event), "epoll_ctl");
}
bool wouldBlock() { return errno == EAGAIN || errno == EINTR; }

// Bytes that say where they belong.
void fill(unsigned char* bytes, std::size_t size, std::uint64_t seed) {
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<unsigned char>((seed * 31 + i) * 0x9e37u >> 7);
}

// ---- servers --------------------------------------------------------------------------------------------------------

enum class Service { echo, answer, sink };
struct Served {
  Service service = Service::echo;
  bool ended = false;
  Bytes pending;
  std::uint64_t thrownAway = 0;
};

// What is pending leaves; false when the connection is done with.
bool flush(int epoll, int fd, Served& served) {
  while (!served.pending.empty()) {
    const ssize_t sent = send(fd, served.pending.data(), served.pending.size(), MSG_NOSIGNAL);
    if (sent < 0) {
      if (!wouldBlock()) return false;
      rewatch(epoll, fd, EPOLLOUT);  // nothing is read meanwhile
      return true;
    }
    served.pending.erase(served.pending.begin(), served.pending.begin() + sent);
    if (served.pending.empty()) rewatch(epoll, fd, EPOLLIN);
  }
  return !served.ended;
}

bool throwAway(int epoll, int fd, Served& served) {
  const ssize_t got = recv(fd, nullptr, std::size_t{4} << 20, MSG_TRUNC);
  if (got < 0) return wouldBlock();
  served.thrownAway += static_cast<std::uint64_t>(got);
  if (got > 0) return true;
  const auto* count = reinterpret_cast<const unsigned char*>(&served.thrownAway);
  served.pending.assign(count, count + sizeof served.thrownAway);
  served.ended = true;
  return flush(epoll, fd, served);
}

bool serveOne(int epoll, int fd, Served& served, std::uint32_t events) {
  if (events & EPOLLOUT) return flush(epoll, fd, served);
  if (served.service == Service::sink) return throwAway(epoll, fd, served);
  static Bytes buffer(256 * 1024);
  const ssize_t got = recv(fd, buffer.data(), buffer.size(), 0);
  if (got < 0) return wouldBlock();
  if (got == 0) return false;
  if (served.service == Service::echo) {
    const ssize_t sent = std::max<ssize_t>(send(fd, buffer.data(), static_cast<std::size_t>(got), MSG_NOSIGNAL), 0);
    if (sent == got) return true;
    served.pending.assign(buffer.begin() + sent, buffer.begin() + got);
    return flush(epoll, fd, served);
  }
  served.pending.insert(served.pending.end(), buffer.begin(), buffer.begin() + got);
  if (served.pending.size() < shortSize) return true;
  served.ended = true;
  return flush(epoll, fd, served);
}

int serve(char** ports) {
  const int epoll = checked(epoll_create1(0), "epoll_create1");
  std::vector<Served> table(65536);
  constexpr int services = 3;
  int listeners[services];
  for (int i = 0; i < services; ++i) {
    const int fd = listeners[i] = newSocket();
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const sockaddr_in at = addressOf("0.0.0.0", ports[i]);
    checked(bind(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at), "bind");
    checked(listen(fd, 4096), "listen");
    watch(epoll, fd, EPOLLIN);
  }
  std::printf("ready\n");
  std::fflush(stdout);
  for (;;) {
    epoll_event events[256];
    const int count = epoll_wait(epoll, events, 256, -1);
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      const auto* listener = std::find(listeners, listeners + services, fd);
      if (listener == listeners + services) {
        if (!serveOne(epoll, fd, table[static_cast<std::size_t>(fd)], events[i].events)) close(fd);
        continue;
      }
      for (int one; (one = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK)) >= 0;) {
        const int on = 1;
        setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        table[static_cast<std::size_t>(one)] = {.service = static_cast<Service>(listener - listeners)};
        watch(epoll, one, EPOLLIN);
      }
    }
  }
}

// ---- clients --------------------------------------------------------------------------------------------------------

struct Call {
  Clock::time_point started;
  std::uint64_t seed = 0;
  std::size_t received = 0;
};

void report(std::vector<double>& latencies, double seconds) {
  std::sort(latencies.begin(), latencies.end());
  const auto at = [&](double part) {
    return latencies.empty() ? 0.0
                             : latencies[static_cast<std::size_t>(part * static_cast<double>(latencies.size() - 1))];
  };
  std::printf("{\"count\":%zu,\"seconds\":%.4f,\"p50\":%.1f,\"p99\":%.1f}\n", latencies.size(), seconds, at(0.5),
              at(0.99));
}

// Both loads: a request of `size` bytes, an answer of the same, checked; on one connection again and again, or each on
// one of its own.
int call(const sockaddr_in& to, int atOnce, double seconds, std::size_t size, bool again) {
  const int epoll = checked(epoll_create1(0), "epoll_create1");
  std::vector<Call> calls(65536);
  std::vector<double> latencies;
  latencies.reserve(1 << 20);
  Bytes request(size);
  Bytes answer(size + 1);
  Bytes expected(size);
  std::uint64_t seed = 0;

  const auto ask = [&](int fd) {
    Call& one = calls[static_cast<std::size_t>(fd)];
    one.seed = ++seed;
    one.received = 0;
    if (again) one.started = Clock::now();
    fill(request.data(), size, one.seed);
    if (send(fd, request.data(), size, MSG_NOSIGNAL) != static_cast<ssize_t>(size)) die("send");
  };
  const auto open = [&] {
    const int fd = newSocket();
    calls[static_cast<std::size_t>(fd)].started = Clock::now();
    if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0 && errno != EINPROGRESS) die("connect");
    watch(epoll, fd, EPOLLOUT);
  };
  const auto started = Clock::now();
  const auto end = started + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  int open_ = atOnce;
  for (int i = 0; i < atOnce; ++i) open();
  while (open_ > 0) {
    epoll_event events[256];
    const int count = epoll_wait(epoll, events, 256, 5000);
    if (count == 0) {
      errno = ETIMEDOUT;
      die("an answer");
    }
    const auto now = Clock::now();
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (events[i].events & EPOLLOUT) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if ((errno = error) != 0) die("connect");
        rewatch(epoll, fd, EPOLLIN);
        ask(fd);
        continue;
      }
      Call& one = calls[static_cast<std::size_t>(fd)];
      const ssize_t got = recv(fd, answer.data(), answer.size(), 0);
      if (got < 0 && wouldBlock()) continue;
      if (got < 0) die("recv");
      fill(expected.data(), size, one.seed);
      errno = EILSEQ;
      if (one.received + static_cast<std::size_t>(got) > size ||
          std::memcmp(answer.data(), expected.data() + one.received, static_cast<std::size_t>(got)) != 0)
        die("the answer");
      one.received += static_cast<std::size_t>(got);
      // A connection of its own has ended well only with its end of stream.
      if (again ? one.received < size : got > 0) continue;
      if (one.received != size) die("the answer ended early");
      latencies.push_back(std::chrono::duration<double, std::micro>(Clock::now() - one.started).count());
      if (now < end && again) {
        ask(fd);
        continue;
      }
      close(fd);
      if (now < end)
        open();
      else
        --open_;
    }
  }
  report(latencies, std::chrono::duration<double>(Clock::now() - started).count());
  return 0;
}

// One connection that is there, blocking.
int connected(const sockaddr_in& to) {
  const int fd = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  checked(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), "connect");
  return fd;
}

void thereAndBack(int fd, std::uint64_t seed) {
  Bytes request(pingSize);
  Bytes answer(pingSize);
  fill(request.data(), pingSize, seed);
  if (send(fd, request.data(), pingSize, MSG_NOSIGNAL) != static_cast<ssize_t>(pingSize)) die("send");
  if (recv(fd, answer.data(), pingSize, MSG_WAITALL) != static_cast<ssize_t>(pingSize)) die("recv");
  errno = EILSEQ;
  if (request != answer) die("the answer");
}

int paced(const sockaddr_in& to, int perSecond, double seconds) {
  const int fd = connected(to);
  std::vector<double> latencies;
  const auto started = Clock::now();
  const auto count = static_cast<std::uint64_t>(perSecond * seconds);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::this_thread::sleep_until(started + i * std::chrono::nanoseconds(1'000'000'000 / perSecond));
    const auto asked = Clock::now();
    thereAndBack(fd, i);
    latencies.push_back(std::chrono::duration<double, std::micro>(Clock::now() - asked).count());
  }
  report(latencies, std::chrono::duration<double>(Clock::now() - started).count());
  return 0;
}

int idle(const sockaddr_in& to, int connections) {
  std::vector<int> fds;
  for (int i = 0; i < connections; ++i) thereAndBack(fds.emplace_back(connected(to)), static_cast<std::uint64_t>(i));
  std::printf("ready\n");
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  return 0;
}

// Every byte that is sent is counted at the other end.
int stream(const sockaddr_in& to, int connections, double seconds) {
  constexpr std::size_t fileSize = std::size_t{4} << 20;
  const int file = checked(memfd_create("stream", 0), "memfd_create");
  Bytes content(fileSize);
  fill(content.data(), fileSize, 1);
  if (write(file, content.data(), fileSize) != static_cast<ssize_t>(fileSize)) die("write");
  const int epoll = checked(epoll_create1(0), "epoll_create1");
  std::vector<std::uint64_t> sent(65536);
  std::vector<int> fds;
  for (int i = 0; i < connections; ++i) {
    const int fd = fds.emplace_back(newSocket());
    if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0 && errno != EINPROGRESS) die("connect");
    watch(epoll, fd, EPOLLOUT);
  }
  const auto started = Clock::now();
  const auto end = started + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  while (Clock::now() < end) {
    epoll_event events[64];
    const int count = epoll_wait(epoll, events, 64, 5000);
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      auto& bytes = sent[static_cast<std::size_t>(fd)];
      auto offset = static_cast<off_t>(bytes % fileSize);
      const ssize_t gone = sendfile(fd, file, &offset, fileSize - bytes % fileSize);
      if (gone < 0 && !wouldBlock()) die("sendfile");
      bytes += static_cast<std::uint64_t>(std::max<ssize_t>(gone, 0));
    }
  }
  std::uint64_t total = 0;
  for (const int fd : fds) shutdown(fd, SHUT_WR);
  for (const int fd : fds) {
    pollfd ready{.fd = fd, .events = POLLIN};
    std::uint64_t arrived = 0;
    if (poll(&ready, 1, 5000) != 1 || recv(fd, &arrived, sizeof arrived, MSG_WAITALL) != sizeof arrived) die("the sink");
    errno = EILSEQ;
    if (arrived != sent[static_cast<std::size_t>(fd)]) die("the sink's count");
    total += arrived;
  }
  std::printf("{\"count\":%llu,\"seconds\":%.4f}\n", static_cast<unsigned long long>(total),
              std::chrono::duration<double>(Clock::now() - started).count());
  return 0;
}

int check(const sockaddr_in& to, std::size_t size) {
  const int fd = newSocket();
  if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0 && errno != EINPROGRESS) die("connect");
  Bytes sent(size);
  Bytes got(size + 1);
  std::mt19937_64 random(size);
  for (std::size_t i = 0; i + 8 <= size; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(&sent[i], &word, 8);
  }
  std::size_t out = 0;
  std::size_t in = 0;
  bool ended = false;
  const auto started = Clock::now();
  while (!ended) {
    // Chunks of 1 byte to 1 MiB, small and large ones in turn, so that the relay changes its mind on the way.
    pollfd ready{.fd = fd, .events = static_cast<short>(out < size ? POLLIN | POLLOUT : POLLIN)};
    if (poll(&ready, 1, 5000) <= 0) {
      errno = ETIMEDOUT;
      die("check");
    }
    if (ready.revents & POLLOUT) {
      const std::size_t most = std::size_t{1} << (random() % 21);
      const std::size_t chunk = std::min(size - out, 1 + random() % most);
      const ssize_t count = send(fd, &sent[out], chunk, MSG_NOSIGNAL);
      if (count < 0 && !wouldBlock()) die("send");
      out += static_cast<std::size_t>(std::max<ssize_t>(count, 0));
      if (out == size) shutdown(fd, SHUT_WR);
    }
    if (ready.revents & (POLLIN | POLLHUP | POLLERR)) {
      const ssize_t count = recv(fd, &got[in], got.size() - in, 0);
      if (count < 0 && !wouldBlock()) die("recv");
      in += static_cast<std::size_t>(std::max<ssize_t>(count, 0));
      ended = count == 0;
    }
  }
  errno = EILSEQ;
  if (in != size || std::memcmp(sent.data(), got.data(), size) != 0) die("check");
  std::printf("{\"count\":%zu,\"seconds\":%.4f}\n", size,
              std::chrono::duration<double>(Clock::now() - started).count());
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string verb = count > 1 ? arguments[1] : "";
  if (verb == "serve" && count == 5) return serve(arguments + 2);
  if (verb == "idle" && count == 5) return idle(addressOf(arguments[2], arguments[3]), std::atoi(arguments[4]));
  if (verb == "check" && count == 5)
    return check(addressOf(arguments[2], arguments[3]), std::strtoull(arguments[4], nullptr, 10));
  if (count == 6) {
    const sockaddr_in to = addressOf(arguments[2], arguments[3]);
    const int number = std::atoi(arguments[4]);
    const double seconds = std::atof(arguments[5]);
    if (verb == "stream") return stream(to, number, seconds);
    if (verb == "paced") return paced(to, number, seconds);
    if (verb == "rr") return call(to, number, seconds, pingSize, true);
    if (verb == "short") return call(to, number, seconds, shortSize, false);
  }
  std::fputs("usage: see the first lines of load.cc\n", stderr);
  return 2;
}
