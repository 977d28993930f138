// What a relay thread is told (commands) and what it tells (events). src/native.ts describes each of them.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "relay/mover.h"
#include "socket/error.h"
#include "socket/transparent.h"
#include "unique_fd.h"

namespace tproxy::relay {

using Id = std::uint64_t;

// Milliseconds; 0 = never.
struct Limits {
  std::int64_t idle = 0;
  std::int64_t halfClose = 0;
  std::int64_t keepAlive = 0;
  std::int64_t userTimeout = 0;
};

// Addresses stay text until the relay thread reads them: the names of interfaces are those of its namespace.
struct Upstream {
  std::string address;
  std::uint16_t port = 0;
  std::string localAddress;  // empty: the kernel chooses
  std::uint16_t localPort = 0;
  bool localPortOptional = false;
  std::optional<std::uint32_t> mark;
  std::int64_t timeout = 0;
  int proxyProtocol = 0;  // version of the header that the server gets first; 0 = none
};

struct ConnectCommand {
  Id id;
  Upstream upstream;
};
struct RelayCommand {
  Id id;
  UniqueFd client;
  UniqueFd server;
  std::vector<std::byte> clientPreface;
  std::vector<std::byte> serverPreface;
  Engine engine;
  Limits limits;
  std::uint64_t* counters;
};
struct AcceptCommand {
  Id id;
  UniqueFd fd;
  bool decide;
  bool preconnect;  // by `upstream`, before it is decided
  bool tell;        // of relays that nobody decides
  Engine engine;
  Limits limits;
  bool redirected;    // conntrack knows where the clients meant to go
  Upstream upstream;  // no address: to the original destination
  bool fromClient;    // connect from the client's address,
  bool clientPort;    // and port
  std::uint64_t* counters;
};
struct DecideCommand {
  enum class Kind { relay, socket, reset, close };
  Id id;
  Kind kind;
  // For a relay:
  Upstream upstream;
  Engine engine;
  Limits limits;
  std::uint64_t* counters;
};
struct PeekCommand {
  Id id;
  std::size_t bytes;
  std::int64_t timeout;
};
struct DestroyCommand {
  Id id;
};
struct TellCommand {
  Id id;
  bool tell;
};
struct StopAcceptingCommand {
  Id id;
  std::int64_t drain;  // milliseconds until what is open is reset; 0 = never
};
// From now on what this process may not open itself is opened so; empty: no more.
struct OpenerCommand {
  socket::Opener opener;
};
using Command = std::variant<ConnectCommand, RelayCommand, AcceptCommand, DecideCommand, PeekCommand, DestroyCommand,
                             TellCommand, StopAcceptingCommand, OpenerCommand>;

struct Endpoint {
  bool v6;
  std::string address;
  std::uint16_t port;
};
enum class Reason { end, reset, idle, destroyed, error };

struct FlowEvent {
  Id server;
  Id id;
  Endpoint source;
  Endpoint originalDestination;
};
struct RelayedEvent {
  Id server;
  Id id;
  Endpoint source;
  Endpoint originalDestination;
};
struct PeekedEvent {
  Id id;
  std::vector<std::byte> data;
};
struct OpenedEvent {
  Id id;
  std::optional<bool> localPortKept;
};
struct ConnectedEvent {
  Id id;
  UniqueFd fd;
  std::optional<bool> localPortKept;
};
struct SocketEvent {
  Id id;
  UniqueFd fd;
};
struct FailedEvent {
  Id id;
  socket::Error failure;
};
struct EndedEvent {
  Id id;
  Reason reason;
  std::optional<socket::Error> failure;
  std::uint64_t bytesFromClient;
  std::uint64_t bytesFromServer;
};
struct AcceptFailedEvent {
  Id server;
  socket::Error failure;
};
struct ClosedEvent {
  Id server;
};
using Event = std::variant<FlowEvent, RelayedEvent, PeekedEvent, OpenedEvent, ConnectedEvent, SocketEvent, FailedEvent,
                           EndedEvent, AcceptFailedEvent, ClosedEvent>;

}  // namespace tproxy::relay
