// Feeds cut and changed messages to every decoder of the core, for a build with sanitizers: what reads past the end of
// its input, or overflows, ends the program.
//     cmake -S . -B build/sanitize -DSANITIZE=ON && cmake --build build/sanitize
//     build/sanitize/fuzz_decode 100000 test/golden/fixtures/*.txt
// What is decoded is encoded and decoded again, and must be the same bytes then.
#include <net/if.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <random>
#include <string>

#include "netlink/error.h"
#include "nftables/batch.h"
#include "rtnetlink/address.h"
#include "rtnetlink/link.h"
#include "rtnetlink/route.h"
#include "rtnetlink/rule.h"

namespace {

using namespace tproxy;
using netlink::Bytes;
using netlink::ByteView;

Bytes encodedAgain(const nftables::Operation& operation) {
  Bytes all;
  for (const auto& message : nftables::encodeBatch({operation}, {.generation = {}, .dryRun = true}).messages)
    all.insert(all.end(), message.bytes().begin(), message.bytes().end());
  return all;
}

// As if it were to be made: what can be told of it.
Bytes encodedAgain(const rtnetlink::Link& link) {
  const auto device = [](std::optional<uint32_t> index) -> std::optional<rtnetlink::Device> {
    if (!index) return {};
    return rtnetlink::Device{.index = *index};
  };
  return rtnetlink::encodeNewLink({.settings = {.index = link.index,
                                                .up = (link.flags & IFF_UP) != 0,
                                                .address = link.address,
                                                .mtu = link.mtu,
                                                .master = device(link.master),
                                                .lower = device(link.lower),
                                                .name = link.name},
                                   .info = link.info.value_or(rtnetlink::Dummy())})
      .bytes();
}

// Decodes twice and compares what comes out the second time, when nothing foreign is left in it.
template <class Decode, class Encode>
bool roundTrip(ByteView message, Decode decode, Encode encode) {
  try {
    const Bytes once = encode(decode(message));
    if (encode(decode(once)) != once) {
      std::puts("decoded, encoded and decoded is something else");
      std::abort();
    }
    return true;
  } catch (const netlink::Malformed&) {
  } catch (const netlink::Error& error) {
    if (error.refusal.errnum != EMSGSIZE) throw;
  }
  return false;
}

size_t tryAll(const Bytes& message) {
  // A block of its own of just this size: the byte behind it is not ours to read.
  const auto exact = std::make_unique<uint8_t[]>(message.size());
  std::copy(message.begin(), message.end(), exact.get());
  const ByteView view(exact.get(), message.size());
  size_t values = 0;
  values += roundTrip(view, rtnetlink::decodeRule,
                      [](const auto& rule) { return encodeRule(rtnetlink::Verb::add, rule).bytes(); });
  values += roundTrip(view, rtnetlink::decodeRoute,
                      [](const auto& route) { return encodeRoute(rtnetlink::Verb::add, route).bytes(); });
  values += roundTrip(view, nftables::decodeOperation, [](const auto& operation) -> Bytes {
    if (operation.verb == nftables::Verb::erase) return {};
    const Bytes all = encodedAgain(operation);
    ByteView rest = all;
    netlink::readMessage(rest);  // the beginning of the batch
    const ByteView encoded = netlink::readMessage(rest).whole;
    return {encoded.begin(), encoded.end()};
  });
  values += roundTrip(view, rtnetlink::decodeAddress,
                      [](const auto& address) { return encodeAddress(rtnetlink::Verb::add, address).bytes(); });
  values += roundTrip(view, rtnetlink::decodeLink, [](const auto& link) { return encodedAgain(link); });
  return values;
}

std::vector<Bytes> samplesIn(const char* path) {
  std::vector<Bytes> samples;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#' || line[0] == '$') continue;
    Bytes& message = samples.emplace_back();
    for (size_t i = 0; i + 1 < line.size(); i += 2)
      message.push_back(static_cast<uint8_t>(std::stoul(line.substr(i, 2), nullptr, 16)));
  }
  return samples;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Bytes> samples;
  for (int i = 2; i < argc; ++i)
    for (Bytes& sample : samplesIn(argv[i])) samples.push_back(std::move(sample));
  if (samples.empty()) return std::puts("usage: fuzz_decode COUNT FIXTURE..."), 2;
  std::mt19937 random(84);
  size_t values = 0;
  const long count = std::atol(argv[1]);
  for (long i = 0; i < count; ++i) {
    Bytes message = samples[random() % samples.size()];
    for (auto changes = random() % 5; changes > 0; --changes)
      message[random() % message.size()] = static_cast<uint8_t>(random());
    if (random() % 4 == 0) message.resize(random() % (message.size() + 1));
    // Otherwise nearly all would be refused for their first four bytes.
    if (message.size() >= 4 && random() % 8 != 0) {
      const auto length = static_cast<uint32_t>(message.size());
      std::memcpy(message.data(), &length, sizeof length);
    }
    values += tryAll(message);
  }
  std::printf("%ld messages, %zu values\n", count, values);
}
