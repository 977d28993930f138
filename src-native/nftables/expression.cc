#include "nftables/expression.h"

namespace tproxy::nftables {

void put(netlink::Encoder& encode, Named attribute, const Expression& expression, Expressed) {
  encode.nest(attribute, [&](netlink::Encoder& inside) {
    std::visit(
        [&](const auto& known) {
          inside.write(NETLINK_NAMED(NFTA_EXPR_NAME), std::string(known.name), text);
          if constexpr (Is<decltype(known), const Unknown&>)
            inside.message().put({NFTA_EXPR_DATA | NLA_F_NESTED, "NFTA_EXPR_DATA"}, known.data.data(),
                                 known.data.size());
          else
            inside.write(NETLINK_NAMED(NFTA_EXPR_DATA), known, netlink::described);
        },
        expression);
  });
}

namespace {

// Tries the alternatives from `index` on.
template <size_t index = 0>
Expression decode(const std::string& name, ByteView data) {
  using Candidate = std::variant_alternative_t<index, Expression>;
  if constexpr (Is<Candidate, Unknown>) {
    return Unknown{.name = name, .data = Bytes(data.begin(), data.end())};
  } else {
    if (name == Candidate::name) {
      Candidate candidate;
      netlink::Decoder decode(data);
      describe(decode, candidate);
      if (!decode.missing && !decode.other) return candidate;
    }
    return decode<index + 1>(name, data);
  }
}

}  // namespace

void get(ByteView data, Expression& expression, Expressed) {
  std::string name;
  Bytes inside;
  netlink::Decoder decoder(data);
  decoder("name", NETLINK_NAMED(NFTA_EXPR_NAME), name, text);
  decoder("data", NETLINK_NAMED(NFTA_EXPR_DATA), inside, zeroAbsent(blob));
  if (decoder.missing) netlink::malformed("expression without a name");
  expression = decode(name, inside);
}

}  // namespace tproxy::nftables
