#include "guard/process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "socket/error.h"

namespace tproxy::guard {

namespace {

constexpr int workTimeoutMs = 1000;  // a guard that takes longer (somebody has stopped it) is not waited for
constexpr int capabilities[] = {CAP_NET_ADMIN};

}  // namespace

Process::Process(std::span<const Datagram> datagrams, const Options& options) {
  const auto& [orphan, heir, netns] = options;
  // They are its standard output and standard error.
  std::vector<int> sockets;
  const auto descriptorOf = [&sockets](int socket) {
    auto known = std::ranges::find(sockets, socket);
    if (known == sockets.end()) known = sockets.insert(known, socket);
    return static_cast<std::uint32_t>(STDOUT_FILENO + (known - sockets.begin()));
  };
  std::vector<std::uint8_t> bytes;
  const auto append = [&bytes](const auto& object) {
    const auto* raw = reinterpret_cast<const std::uint8_t*>(&object);
    bytes.insert(bytes.end(), raw, raw + sizeof object);
  };
  Preface preface{};
  if (orphan)
    preface = {.descriptor = descriptorOf(orphan->socket),
               .question = static_cast<std::uint32_t>(orphan->question.size()),
               .takeover = static_cast<std::uint32_t>(orphan->takeover.size()),
               .words = 0,
               .graceMs = orphan->graceMs,
               .owner = orphan->owner};
  std::string words;
  if (heir) {
    for (const std::string& word : heir->words) words += word + '\n';
    preface.owner = heir->owner;
    preface.words = static_cast<std::uint32_t>(words.size());
  }
  append(preface);
  if (orphan)
    for (const auto& part : {orphan->question, orphan->takeover}) bytes.insert(bytes.end(), part.begin(), part.end());
  bytes.insert(bytes.end(), words.begin(), words.end());
  for (const Datagram& datagram : datagrams) {
    append(Header{.descriptor = descriptorOf(datagram.socket),
                  .length = static_cast<std::uint32_t>(datagram.bytes.size())});
    bytes.insert(bytes.end(), datagram.bytes.begin(), datagram.bytes.end());
  }
  if (bytes.size() > capacity) throw socket::Error(EMSGSIZE, "guard");
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw socket::Error(errno, "pipe");
  const UniqueFd standardInput(ends[0]);
  life_.reset(ends[1]);
  child_.emplace(child::Options{.role = "linux-tproxy-guard",
                                .standardInput = standardInput.get(),
                                .standardOutput = sockets.at(0),
                                .standardError = sockets.size() > 1 ? sockets[1] : -1,
                                .capabilities = capabilities,
                                .netns = netns});
  write(bytes);  // until all of it is there the guard could only do a part: nothing is installed yet
}

void Process::write(std::span<const std::uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t size = ::write(life_.get(), bytes.data(), bytes.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) {
      const int errnum = errno;
      disarm();
      throw socket::Error(errnum, "write to the guard");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(size));
  }
}

void Process::release() {
  if (!life_) return;
  const std::uint8_t word = 0;
  write({&word, 1});
  work();
}

void Process::work() {
  if (!life_) return;
  life_.reset();
  child_->waitForEnd(workTimeoutMs);
  child_->end();
}

// By signal and not by a word: so it also ends when somebody has stopped it.
void Process::disarm() {
  if (!life_) return;
  child_->end();
  life_.reset();
}

}  // namespace tproxy::guard
