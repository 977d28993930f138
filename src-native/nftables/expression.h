// The expressions of nf_tables: the instructions that rules are made of. A new one is a struct, its describe function
// and its place in `Expression`. Registers are the kernel's numbers (enum nft_registers).
#pragma once
// clang-format off
#include <netinet/in.h>  // first: what linux/netfilter.h includes then leaves out what this defines
#include <linux/netfilter.h>
#include <linux/netfilter/nf_nat.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nf_tables_compat.h>
// clang-format on

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "netlink/describe.h"

namespace tproxy::nftables {

using netlink::be32;
using netlink::be64;
using netlink::blob;
using netlink::Bytes;
using netlink::ByteView;
using netlink::enumeration;
using netlink::flag;
using netlink::flags;
using netlink::Is;
using netlink::Named;
using netlink::text;
using netlink::Word;
using netlink::zeroAbsent;
using netlink::zeroInJsOnly;
using netlink::zeroOnWireOnly;

// A constant that a register is compared with or loaded from.
inline void describeData(auto& visit, Named attribute, const char* name, auto& bytes) {
  visit.nest(attribute, [&](auto& data) { data(name, NETLINK_NAMED(NFTA_DATA_VALUE), bytes, blob); });
}

// ---- meta: what the kernel knows of a packet beside its bytes -------------------------------------------------------

inline constexpr Word metaKeys[] = {
    {"len", NFT_META_LEN},           {"protocol", NFT_META_PROTOCOL}, {"priority", NFT_META_PRIORITY},
    {"mark", NFT_META_MARK},         {"iif", NFT_META_IIF},           {"oif", NFT_META_OIF},
    {"iifname", NFT_META_IIFNAME},   {"oifname", NFT_META_OIFNAME},   {"iiftype", NFT_META_IIFTYPE},
    {"oiftype", NFT_META_OIFTYPE},   {"skuid", NFT_META_SKUID},       {"skgid", NFT_META_SKGID},
    {"nfproto", NFT_META_NFPROTO},   {"l4proto", NFT_META_L4PROTO},   {"cpu", NFT_META_CPU},
    {"iifgroup", NFT_META_IIFGROUP}, {"oifgroup", NFT_META_OIFGROUP}, {"cgroup", NFT_META_CGROUP},
};
// With dreg it loads, with sreg it sets.
struct Meta {
  static constexpr const char *kind = "meta", *name = "meta";
  uint32_t key = 0;
  std::optional<uint32_t> dreg, sreg;
};
void describe(auto& visit, Is<Meta> auto& meta) {
  visit("key", NETLINK_NAMED(NFTA_META_KEY), meta.key, enumeration(be32, metaKeys));
  visit("dreg", NETLINK_NAMED(NFTA_META_DREG), meta.dreg, be32);
  visit("sreg", NETLINK_NAMED(NFTA_META_SREG), meta.sreg, be32);
}

// ---- payload: bytes of the packet -----------------------------------------------------------------------------------

inline constexpr Word payloadBases[] = {
    {"link", NFT_PAYLOAD_LL_HEADER},
    {"network", NFT_PAYLOAD_NETWORK_HEADER},
    {"transport", NFT_PAYLOAD_TRANSPORT_HEADER},
    {"inner", NFT_PAYLOAD_INNER_HEADER},
};
struct Payload {
  static constexpr const char *kind = "payload", *name = "payload";
  uint32_t dreg = 0, base = 0, offset = 0, length = 0;
};
void describe(auto& visit, Is<Payload> auto& payload) {
  visit("dreg", NETLINK_NAMED(NFTA_PAYLOAD_DREG), payload.dreg, be32);
  visit("base", NETLINK_NAMED(NFTA_PAYLOAD_BASE), payload.base, enumeration(be32, payloadBases));
  visit("offset", NETLINK_NAMED(NFTA_PAYLOAD_OFFSET), payload.offset, be32);
  visit("length", NETLINK_NAMED(NFTA_PAYLOAD_LEN), payload.length, be32);
}

// ---- cmp, bitwise, immediate ----------------------------------------------------------------------------------------

inline constexpr Word cmpOps[] = {
    {"eq", NFT_CMP_EQ},   {"neq", NFT_CMP_NEQ}, {"lt", NFT_CMP_LT},
    {"lte", NFT_CMP_LTE}, {"gt", NFT_CMP_GT},   {"gte", NFT_CMP_GTE},
};
struct Cmp {
  static constexpr const char *kind = "cmp", *name = "cmp";
  uint32_t sreg = 0, op = 0;
  Bytes data;
};
void describe(auto& visit, Is<Cmp> auto& cmp) {
  visit("sreg", NETLINK_NAMED(NFTA_CMP_SREG), cmp.sreg, be32);
  visit("op", NETLINK_NAMED(NFTA_CMP_OP), cmp.op, enumeration(be32, cmpOps));
  describeData(visit, NETLINK_NAMED(NFTA_CMP_DATA), "data", cmp.data);
}

// dreg = (sreg & mask) ^ xor. `x | y` is mask ~y, xor y.
struct Bitwise {
  static constexpr const char *kind = "bitwise", *name = "bitwise";
  uint32_t sreg = 0, dreg = 0, length = 0;
  Bytes mask, exclusiveOr;
};
void describe(auto& visit, Is<Bitwise> auto& bitwise) {
  visit("sreg", NETLINK_NAMED(NFTA_BITWISE_SREG), bitwise.sreg, be32);
  visit("dreg", NETLINK_NAMED(NFTA_BITWISE_DREG), bitwise.dreg, be32);
  visit.constant(NETLINK_NAMED(NFTA_BITWISE_OP), NFT_BITWISE_BOOL, be32);
  visit("length", NETLINK_NAMED(NFTA_BITWISE_LEN), bitwise.length, be32);
  describeData(visit, NETLINK_NAMED(NFTA_BITWISE_MASK), "mask", bitwise.mask);
  describeData(visit, NETLINK_NAMED(NFTA_BITWISE_XOR), "xor", bitwise.exclusiveOr);
}

struct Immediate {
  static constexpr const char *kind = "immediate", *name = "immediate";
  uint32_t dreg = 0;
  Bytes data;
};
void describe(auto& visit, Is<Immediate> auto& immediate) {
  visit("dreg", NETLINK_NAMED(NFTA_IMMEDIATE_DREG), immediate.dreg, be32);
  describeData(visit, NETLINK_NAMED(NFTA_IMMEDIATE_DATA), "data", immediate.data);
}

// In the kernel a verdict is an immediate that goes into the verdict register.
inline constexpr Word verdicts[] = {
    {"accept", NF_ACCEPT},
    {"drop", NF_DROP},
    {"queue", NF_QUEUE},
    {"continue", static_cast<uint32_t>(NFT_CONTINUE)},
    {"return", static_cast<uint32_t>(NFT_RETURN)},
    {"jump", static_cast<uint32_t>(NFT_JUMP)},
    {"goto", static_cast<uint32_t>(NFT_GOTO)},
};
struct Verdict {
  static constexpr const char *kind = "verdict", *name = "immediate";
  uint32_t verdict = 0;
  std::optional<std::string> chain;
};
void describe(auto& visit, Is<Verdict> auto& verdict) {
  visit.constant(NETLINK_NAMED(NFTA_IMMEDIATE_DREG), NFT_REG_VERDICT, be32);
  visit.nest(NETLINK_NAMED(NFTA_IMMEDIATE_DATA), [&](auto& data) {
    data.nest(NETLINK_NAMED(NFTA_DATA_VERDICT), [&](auto& inner) {
      inner("verdict", NETLINK_NAMED(NFTA_VERDICT_CODE), verdict.verdict, enumeration(be32, verdicts));
      inner("chain", NETLINK_NAMED(NFTA_VERDICT_CHAIN), verdict.chain, text);
    });
  });
}

// ---- lookup, dynset: sets -------------------------------------------------------------------------------------------

struct Lookup {
  static constexpr const char *kind = "lookup", *name = "lookup";
  uint32_t sreg = 0;
  std::optional<uint32_t> dreg;
  std::string set;
  std::optional<uint32_t> setId;
  bool invert = false;
};
void describe(auto& visit, Is<Lookup> auto& lookup) {
  visit("sreg", NETLINK_NAMED(NFTA_LOOKUP_SREG), lookup.sreg, be32);
  visit("dreg", NETLINK_NAMED(NFTA_LOOKUP_DREG), lookup.dreg, be32);
  visit("set", NETLINK_NAMED(NFTA_LOOKUP_SET), lookup.set, text);
  visit("setId", NETLINK_NAMED(NFTA_LOOKUP_SET_ID), lookup.setId, be32);
  visit("invert", NETLINK_NAMED(NFTA_LOOKUP_FLAGS), lookup.invert, flag(be32, NFT_LOOKUP_F_INV));
}

inline constexpr Word dynsetOps[] = {
    {"add", NFT_DYNSET_OP_ADD},
    {"update", NFT_DYNSET_OP_UPDATE},
    {"delete", NFT_DYNSET_OP_DELETE},
};
struct Dynset {
  static constexpr const char *kind = "dynset", *name = "dynset";
  uint32_t sregKey = 0, op = 0;
  uint64_t timeoutMs = 0;  // 0: the set's own
  std::string set;
  std::optional<uint32_t> setId;
  bool invert = false;
};
void describe(auto& visit, Is<Dynset> auto& dynset) {
  visit("sregKey", NETLINK_NAMED(NFTA_DYNSET_SREG_KEY), dynset.sregKey, be32);
  visit("op", NETLINK_NAMED(NFTA_DYNSET_OP), dynset.op, enumeration(be32, dynsetOps));
  visit("timeoutMs", NETLINK_NAMED(NFTA_DYNSET_TIMEOUT), dynset.timeoutMs, zeroAbsent(be64));
  visit("set", NETLINK_NAMED(NFTA_DYNSET_SET_NAME), dynset.set, text);
  visit("setId", NETLINK_NAMED(NFTA_DYNSET_SET_ID), dynset.setId, be32);
  visit("invert", NETLINK_NAMED(NFTA_DYNSET_FLAGS), dynset.invert, flag(be32, NFT_DYNSET_F_INV));
}

// ---- fib, socket, tproxy, ct ----------------------------------------------------------------------------------------

inline constexpr Word fibResults[] = {
    {"oif", NFT_FIB_RESULT_OIF},
    {"oifname", NFT_FIB_RESULT_OIFNAME},
    {"type", NFT_FIB_RESULT_ADDRTYPE},
};
inline constexpr Word fibFlags[] = {
    {"saddr", NFTA_FIB_F_SADDR}, {"daddr", NFTA_FIB_F_DADDR}, {"mark", NFTA_FIB_F_MARK},
    {"iif", NFTA_FIB_F_IIF},     {"oif", NFTA_FIB_F_OIF},     {"present", NFTA_FIB_F_PRESENT},
};
struct Fib {
  static constexpr const char *kind = "fib", *name = "fib";
  uint32_t lookupFlags = 0, result = 0, dreg = 0;
};
void describe(auto& visit, Is<Fib> auto& fib) {
  visit("flags", NETLINK_NAMED(NFTA_FIB_FLAGS), fib.lookupFlags, flags(be32, fibFlags));
  visit("result", NETLINK_NAMED(NFTA_FIB_RESULT), fib.result, enumeration(be32, fibResults));
  visit("dreg", NETLINK_NAMED(NFTA_FIB_DREG), fib.dreg, be32);
}

inline constexpr Word socketKeys[] = {
    {"transparent", NFT_SOCKET_TRANSPARENT},
    {"mark", NFT_SOCKET_MARK},
    {"wildcard", NFT_SOCKET_WILDCARD},
    {"cgroupv2", NFT_SOCKET_CGROUPV2},
};
struct Socket {
  static constexpr const char *kind = "socket", *name = "socket";
  uint32_t key = 0, dreg = 0;
  uint32_t level = 0;  // of the cgroup; nft sends it with the other keys too
};
void describe(auto& visit, Is<Socket> auto& socket) {
  visit("key", NETLINK_NAMED(NFTA_SOCKET_KEY), socket.key, enumeration(be32, socketKeys));
  visit("dreg", NETLINK_NAMED(NFTA_SOCKET_DREG), socket.dreg, be32);
  visit("level", NETLINK_NAMED(NFTA_SOCKET_LEVEL), socket.level, zeroOnWireOnly(be32));
}

inline constexpr Word tproxyFamilies[] = {
    {"unspec", NFPROTO_UNSPEC},
    {"ip", NFPROTO_IPV4},
    {"ip6", NFPROTO_IPV6},
};
struct Tproxy {
  static constexpr const char *kind = "tproxy", *name = "tproxy";
  uint32_t family = 0;
  std::optional<uint32_t> regAddr, regPort;
};
void describe(auto& visit, Is<Tproxy> auto& tproxy) {
  visit("family", NETLINK_NAMED(NFTA_TPROXY_FAMILY), tproxy.family, enumeration(be32, tproxyFamilies));
  visit("regAddr", NETLINK_NAMED(NFTA_TPROXY_REG_ADDR), tproxy.regAddr, be32);
  visit("regPort", NETLINK_NAMED(NFTA_TPROXY_REG_PORT), tproxy.regPort, be32);
}

inline constexpr Word natFlags[] = {
    {"mapIps", NF_NAT_RANGE_MAP_IPS},
    {"protoSpecified", NF_NAT_RANGE_PROTO_SPECIFIED},
    {"protoRandom", NF_NAT_RANGE_PROTO_RANDOM},
    {"persistent", NF_NAT_RANGE_PERSISTENT},
    {"protoRandomFully", NF_NAT_RANGE_PROTO_RANDOM_FULLY},
};
// `redirect`: to this host itself, at the port in the register.
struct Redir {
  static constexpr const char *kind = "redir", *name = "redir";
  std::optional<uint32_t> regProtoMin, regProtoMax;
  uint32_t natFlags = 0;
};
void describe(auto& visit, Is<Redir> auto& redir) {
  visit("regProtoMin", NETLINK_NAMED(NFTA_REDIR_REG_PROTO_MIN), redir.regProtoMin, be32);
  visit("regProtoMax", NETLINK_NAMED(NFTA_REDIR_REG_PROTO_MAX), redir.regProtoMax, be32);
  visit("flags", NETLINK_NAMED(NFTA_REDIR_FLAGS), redir.natFlags, zeroAbsent(flags(be32, natFlags)));
}

inline constexpr Word ctKeys[] = {
    {"state", NFT_CT_STATE},           {"direction", NFT_CT_DIRECTION},
    {"status", NFT_CT_STATUS},         {"mark", NFT_CT_MARK},
    {"expiration", NFT_CT_EXPIRATION}, {"l3protocol", NFT_CT_L3PROTOCOL},
    {"protocol", NFT_CT_PROTOCOL},     {"zone", NFT_CT_ZONE},
};
inline constexpr Word ctDirections[] = {
    {"original", 0},  // IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY: only the kernel's internal headers have them
    {"reply", 1},
};
struct Ct {
  static constexpr const char *kind = "ct", *name = "ct";
  uint32_t key = 0;
  std::optional<uint32_t> dreg, sreg;
  std::optional<uint8_t> direction;
};
void describe(auto& visit, Is<Ct> auto& ct) {
  visit("key", NETLINK_NAMED(NFTA_CT_KEY), ct.key, enumeration(be32, ctKeys));
  visit("dreg", NETLINK_NAMED(NFTA_CT_DREG), ct.dreg, be32);
  visit("direction", NETLINK_NAMED(NFTA_CT_DIRECTION), ct.direction, enumeration(netlink::u8, ctDirections));
  visit("sreg", NETLINK_NAMED(NFTA_CT_SREG), ct.sreg, be32);
}

// ---- counter, byteorder ---------------------------------------------------------------------------------------------

struct Counter {
  static constexpr const char *kind = "counter", *name = "counter";
  uint64_t bytes = 0, packets = 0;
};
void describe(auto& visit, Is<Counter> auto& counter) {
  visit("bytes", NETLINK_NAMED(NFTA_COUNTER_BYTES), counter.bytes, zeroInJsOnly(be64));
  visit("packets", NETLINK_NAMED(NFTA_COUNTER_PACKETS), counter.packets, zeroInJsOnly(be64));
}

inline constexpr Word byteorderOps[] = {{"ntoh", NFT_BYTEORDER_NTOH}, {"hton", NFT_BYTEORDER_HTON}};
// Turns host order numbers (meta mark, skuid) round, so that ranges of them can be compared.
struct Byteorder {
  static constexpr const char *kind = "byteorder", *name = "byteorder";
  uint32_t sreg = 0, dreg = 0, op = 0, length = 0, size = 0;
};
void describe(auto& visit, Is<Byteorder> auto& byteorder) {
  visit("sreg", NETLINK_NAMED(NFTA_BYTEORDER_SREG), byteorder.sreg, be32);
  visit("dreg", NETLINK_NAMED(NFTA_BYTEORDER_DREG), byteorder.dreg, be32);
  visit("op", NETLINK_NAMED(NFTA_BYTEORDER_OP), byteorder.op, enumeration(be32, byteorderOps));
  visit("length", NETLINK_NAMED(NFTA_BYTEORDER_LEN), byteorder.length, be32);
  visit("size", NETLINK_NAMED(NFTA_BYTEORDER_SIZE), byteorder.size, be32);
}

// ---- objref: named objects ------------------------------------------------------------------------------------------

inline constexpr Word objectTypes[] = {
    {"counter", NFT_OBJECT_COUNTER},      {"quota", NFT_OBJECT_QUOTA},         {"ctHelper", NFT_OBJECT_CT_HELPER},
    {"limit", NFT_OBJECT_LIMIT},          {"connlimit", NFT_OBJECT_CONNLIMIT}, {"tunnel", NFT_OBJECT_TUNNEL},
    {"ctTimeout", NFT_OBJECT_CT_TIMEOUT}, {"secmark", NFT_OBJECT_SECMARK},     {"ctExpect", NFT_OBJECT_CT_EXPECT},
    {"synproxy", NFT_OBJECT_SYNPROXY},
};
// Runs an object of the same table: `counter name "web"`.
struct Objref {
  static constexpr const char *kind = "objref", *name = "objref";
  uint32_t type = 0;
  std::string object;
};
void describe(auto& visit, Is<Objref> auto& objref) {
  visit("type", NETLINK_NAMED(NFTA_OBJREF_IMM_TYPE), objref.type, enumeration(be32, objectTypes));
  visit("name", NETLINK_NAMED(NFTA_OBJREF_IMM_NAME), objref.object, netlink::bareText);
}

// ---- match, target: extensions of iptables, in its nft variant ------------------------------------------------------

struct Match {
  static constexpr const char *kind = "match", *name = "match";
  std::string extension;
  uint32_t revision = 0;
  Bytes info;  // the C structure of that name and revision
};
void describe(auto& visit, Is<Match> auto& match) {
  visit("name", NETLINK_NAMED(NFTA_MATCH_NAME), match.extension, text);
  visit("revision", NETLINK_NAMED(NFTA_MATCH_REV), match.revision, be32);
  visit("info", NETLINK_NAMED(NFTA_MATCH_INFO), match.info, blob);
}

struct Target {
  static constexpr const char *kind = "target", *name = "target";
  std::string extension;
  uint32_t revision = 0;
  Bytes info;
};
void describe(auto& visit, Is<Target> auto& target) {
  visit("name", NETLINK_NAMED(NFTA_TARGET_NAME), target.extension, text);
  visit("revision", NETLINK_NAMED(NFTA_TARGET_REV), target.revision, be32);
  visit("info", NETLINK_NAMED(NFTA_TARGET_INFO), target.info, blob);
}

// ---- all of them ----------------------------------------------------------------------------------------------------

// What is not above, as the kernel sent it.
struct Unknown {
  static constexpr const char* kind = "unknown";
  std::string name;
  Bytes data;
};
void describe(auto& visit, Is<Unknown> auto& unknown) {
  visit.header("name", unknown.name, text);
  visit.header("data", unknown.data, blob);
}

// Several kinds may share a name (immediate, verdict): the first whose attributes are all there is taken.
using Expression = std::variant<Meta, Payload, Cmp, Bitwise, Immediate, Verdict, Lookup, Dynset, Fib, Socket, Tproxy,
                                Redir, Ct, Counter, Byteorder, Objref, Match, Target, Unknown>;

// The representation of an expression: NFTA_EXPR_NAME and NFTA_EXPR_DATA.
struct Expressed {};
inline constexpr Expressed expressed;
void put(netlink::Encoder& encode, Named attribute, const Expression& expression, Expressed);
void get(ByteView data, Expression& expression, Expressed);

}  // namespace tproxy::nftables
