#include "guard/process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "socket/error.h"

namespace tproxy::guard {

namespace {

constexpr int workTimeoutMs = 1000;  // a guard that takes longer (somebody has stopped it) is not waited for
constexpr int capabilities[] = {CAP_NET_ADMIN};

}  // namespace

Process::Process(int route, int nftables, const std::string& netns) : hasNftables_(nftables >= 0) {
  const UniqueFd memory(memfd_create("linux-tproxy-guard", MFD_CLOEXEC));
  if (!memory || ftruncate(memory.get(), sizeof(Orders)) != 0) throw socket::Error(errno, "memfd_create");
  void* shared = mmap(nullptr, sizeof(Orders), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (shared == MAP_FAILED) throw socket::Error(errno, "mmap");
  orders_.reset(new (shared) Orders);
  rest();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw socket::Error(errno, "pipe");
  const UniqueFd standardInput(ends[0]);
  life_.reset(ends[1]);
  child_.emplace(child::Options{.role = "linux-tproxy-guard",
                                .standardInput = standardInput.get(),
                                .standardOutput = route,
                                .standardError = nftables,
                                .memory = memory.get(),
                                .capabilities = capabilities,
                                .netns = netns});
}

void Process::Unmap::operator()(Orders* orders) const { munmap(orders, sizeof *orders); }

void Process::renew(std::span<const Datagram> datagrams, const Orphan* orphan, const Heir* heir) {
  const std::uint32_t next = orders_->current == 0 ? 1 : 0;
  Work& work = orders_->work[next];
  work.preface = {};
  const auto append = [&](const void* data, std::size_t size) {
    if (size > Work::capacity - work.preface.length) throw socket::Error(EMSGSIZE, "guard");
    std::memcpy(work.bytes + work.preface.length, data, size);
    work.preface.length += static_cast<std::uint32_t>(size);
  };
  if (orphan) {
    for (const auto& part : {orphan->question, orphan->takeover}) append(part.data(), part.size());
    work.preface.question = static_cast<std::uint32_t>(orphan->question.size());
    work.preface.takeover = static_cast<std::uint32_t>(orphan->takeover.size());
    work.preface.graceMs = orphan->graceMs;
    work.preface.owner = orphan->owner;
  }
  if (heir) {
    append(heir->words.data(), heir->words.size());
    append(heir->lock.data(), heir->lock.size());
    work.preface.words = static_cast<std::uint32_t>(heir->words.size());
    work.preface.lock = static_cast<std::uint32_t>(heir->lock.size());
    work.preface.owner = heir->owner;
  }
  for (const Datagram& datagram : datagrams) {
    const Header header{.socket = datagram.socket, .length = static_cast<std::uint32_t>(datagram.bytes.size())};
    append(&header, sizeof header);
    append(datagram.bytes.data(), datagram.bytes.size());
  }
  orders_->current = next;
}

void Process::release() {
  for (Work& each : orders_->work) each.preface.owner = 0;
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
