// Describe each kernel object once.
//
// An object is a plain struct, and one function lists its members:
//
//     struct Meta { uint32_t key; std::optional<uint32_t> dreg; };
//     void describe(auto& visit, Is<Meta> auto& meta) {
//       visit("key", NETLINK_NAMED(NFTA_META_KEY), meta.key, enumeration(be32, metaKeys));
//       visit("dreg", NETLINK_NAMED(NFTA_META_DREG), meta.dreg, be32);
//     }
//
// Each line is: name in JavaScript, attribute in the kernel, member, representation in the attribute. Four visitors
// read the list: Encoder and Decoder (below, bytes), JsReader and JsWriter (bindings/js.h, JavaScript). So they cannot
// disagree. Attributes are written in the order of the list, which is that of iproute2 and nft.
//
// A visitor has, besides the call itself:
//   key       the same for what names the object: sent in every message, the call's only when it is added
//   handle    sent when the object is deleted, never when it is added; the kernel gives it
//   readOnly  only the kernel sends it
//   writeOnly only we send it
//   header    a member of the message's fixed header, which encode and decode functions fill by hand: JavaScript only
//   wireOnly  the other way round: bytes only
//   constant  an attribute that is always the same: bytes only
//   nest      an attribute that holds those listed inside, which are flat in JavaScript
//   group     an object in JavaScript that holds those listed inside, which are flat in the message
#pragma once
#include <bit>
#include <concepts>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "netlink/message.h"

namespace tproxy::netlink {

template <class T, class U>
concept Is = std::same_as<std::remove_const_t<T>, U>;

template <class T>
inline constexpr bool isOptional = false;
template <class T>
inline constexpr bool isOptional<std::optional<T>> = true;

// ---- representations ------------------------------------------------------------------------------------------------

template <class Int, std::endian order>
struct Number {};
inline constexpr Number<uint8_t, std::endian::native> u8;
inline constexpr Number<uint16_t, std::endian::native> host16;
inline constexpr Number<uint32_t, std::endian::native> host32;
inline constexpr Number<uint16_t, std::endian::big> be16;
inline constexpr Number<uint32_t, std::endian::big> be32;
inline constexpr Number<uint64_t, std::endian::big> be64;

struct Text {};             // ends with NUL
struct BareText : Text {};  // does not
struct Blob {};
inline constexpr Text text;
inline constexpr BareText bareText{};
inline constexpr Blob blob;

// A name for a number of the kernel. What has no name is a number in JavaScript too.
struct Word {
  const char* name;
  uint32_t value;
};
using Words = std::span<const Word>;

template <class Number>
struct Enumeration {
  Number number;
  Words words;
};
template <class Number>
constexpr Enumeration<Number> enumeration(Number number, Words words) {
  return {number, words};
}

// A number made of bits with names.
template <class Number>
struct Flags {
  Number number;
  Words words;
};
template <class Number>
constexpr Flags<Number> flags(Number number, Words words) {
  return {number, words};
}

// A bool that is 1 or 0.
template <class Number>
struct Boolean {
  Number number;
};
template <class Number>
constexpr Boolean<Number> boolean(Number number) {
  return {number};
}

// One bit of a number, a bool here; absent when false.
template <class Number>
struct Flag {
  Number number;
  uint32_t bit;
};
template <class Number>
constexpr Flag<Number> flag(Number number, uint32_t bit) {
  return {number, bit};
}

// Where zero (or no bytes) is left out, and read when nothing is there.
template <class Representation>
struct Zero {
  Representation representation;
  bool onWire, inJs;
};
template <class Representation>
constexpr Zero<Representation> zeroAbsent(Representation representation) {
  return {representation, false, false};
}
template <class Representation>
constexpr Zero<Representation> zeroOnWireOnly(Representation representation) {
  return {representation, true, false};
}
template <class Representation>
constexpr Zero<Representation> zeroByDefault(Representation representation) {
  return {representation, true, true};
}
template <class Representation>
constexpr Zero<Representation> zeroInJsOnly(Representation representation) {
  return {representation, false, true};
}

template <std::integral T>
constexpr bool isZero(T value) {
  return value == 0;
}
inline bool isZero(const Bytes& value) { return value.empty(); }

// An attribute that holds this one attribute.
template <class Representation>
struct Nested {
  Named inner;
  Representation representation;
};
template <class Representation>
constexpr Nested<Representation> nested(Named inner, Representation representation) {
  return {inner, representation};
}

// A struct with a `describe` of its own.
struct Described {};
inline constexpr Described described;

// A vector. libnftnl numbers the elements of a set (1, 2, ...) where the kernel reads no attribute type at all.
template <class Representation>
struct List {
  Named element;
  Representation representation;
  bool numbered;
};
template <class Representation>
constexpr List<Representation> list(Named element, Representation representation) {
  return {element, representation, false};
}
template <class Representation>
constexpr List<Representation> numberedList(Named element, Representation representation) {
  return {element, representation, true};
}

// ---- encode ---------------------------------------------------------------------------------------------------------

// The part of a list that goes into one message: from `first`, as many as an attribute holds; `next` is the first that
// did not fit.
struct Slice {
  size_t first = 0, next = 0;
};

class Encoder {
 public:
  enum class Purpose { add, erase };

  explicit Encoder(Message& message, Purpose purpose = Purpose::add, Slice* part = nullptr)
      : slice(part), message_(message), purpose_(purpose) {}

  template <class T, class Representation>
  void operator()(const char*, Named attribute, const T& value, const Representation& representation) {
    if (purpose_ == Purpose::add) write(attribute, value, representation);
  }
  template <class T, class Representation>
  void key(const char*, Named attribute, const T& value, const Representation& representation) {
    write(attribute, value, representation);
  }
  template <class T, class Representation>
  void handle(const char*, Named attribute, const T& value, const Representation& representation) {
    if (purpose_ == Purpose::erase) write(attribute, value, representation);
  }
  void readOnly(const char*, Named, const auto&, const auto&) {}
  void writeOnly(const char* name, Named attribute, const auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void header(const char*, const auto&, const auto&) {}
  void wireOnly(Named attribute, const auto& value, const auto& representation) {
    (*this)("", attribute, value, representation);
  }
  void constant(Named attribute, auto value, const auto& representation) { write(attribute, value, representation); }
  void nest(Named attribute, auto inside) {
    const size_t opened = message_.open(attribute);
    inside(*this);
    message_.close(opened);
  }
  void group(const char*, auto inside) { inside(*this); }

  Message& message() { return message_; }
  template <class T, class Representation>
  void write(Named attribute, const T& value, const Representation& representation) {
    if constexpr (isOptional<T>) {
      if (value) put(*this, attribute, *value, representation);
    } else {
      put(*this, attribute, value, representation);
    }
  }

  Slice* const slice;

 private:
  Message& message_;
  Purpose purpose_;
};

template <class Int>
constexpr Int bigEndian(Int value) {
  if constexpr (std::endian::native == std::endian::big || sizeof(Int) == 1) return value;
  if constexpr (sizeof(Int) == 2) return static_cast<Int>(__builtin_bswap16(static_cast<uint16_t>(value)));
  if constexpr (sizeof(Int) == 4) return static_cast<Int>(__builtin_bswap32(static_cast<uint32_t>(value)));
  if constexpr (sizeof(Int) == 8) return static_cast<Int>(__builtin_bswap64(static_cast<uint64_t>(value)));
}

template <class Int, std::endian order>
void put(Encoder& encode, Named attribute, auto value, Number<Int, order>) {
  const Int plain = static_cast<Int>(value);
  const Int wire = order == std::endian::big ? bigEndian(plain) : plain;
  encode.message().put(attribute, &wire, sizeof wire);
}
inline void put(Encoder& encode, Named attribute, const std::string& value, Text) {
  encode.message().put(attribute, value.c_str(), value.size() + 1);
}
inline void put(Encoder& encode, Named attribute, const std::string& value, BareText) {
  encode.message().put(attribute, value.data(), value.size());
}
inline void put(Encoder& encode, Named attribute, const Bytes& value, Blob) {
  encode.message().put(attribute, value.data(), value.size());
}
template <class Number>
void put(Encoder& encode, Named attribute, auto value, const Enumeration<Number>& representation) {
  put(encode, attribute, value, representation.number);
}
template <class Number>
void put(Encoder& encode, Named attribute, auto value, const Flags<Number>& representation) {
  put(encode, attribute, value, representation.number);
}
template <class Number>
void put(Encoder& encode, Named attribute, bool value, const Boolean<Number>& representation) {
  put(encode, attribute, value, representation.number);
}
template <class Number>
void put(Encoder& encode, Named attribute, bool value, const Flag<Number>& representation) {
  if (value) put(encode, attribute, representation.bit, representation.number);
}
template <class T, class Representation>
void put(Encoder& encode, Named attribute, const T& value, const Zero<Representation>& zero) {
  if (!isZero(value) || zero.onWire) put(encode, attribute, value, zero.representation);
}
template <class T, class Representation>
void put(Encoder& encode, Named attribute, const T& value, const Nested<Representation>& representation) {
  encode.nest(attribute,
              [&](Encoder& inside) { inside.write(representation.inner, value, representation.representation); });
}
template <class T>
void put(Encoder& encode, Named attribute, const T& value, Described) {
  const size_t opened = encode.message().open(attribute);
  describe(encode, value);
  encode.message().close(opened, true);
}
template <class T, class Representation>
void put(Encoder& encode, Named attribute, const std::vector<T>& values, const List<Representation>& representation) {
  Message& message = encode.message();
  const size_t opened = message.open(attribute);
  Named element = representation.element;
  size_t next = encode.slice ? encode.slice->first : 0;
  for (; next < values.size(); ++next) {
    const size_t before = message.size();
    put(encode, element, values[next], representation.representation);
    if (encode.slice && message.size() - opened > UINT16_MAX) {
      message.truncate(before);
      break;
    }
    if (representation.numbered) ++element.value;
  }
  if (encode.slice) encode.slice->next = next;
  message.close(opened);
}

// ---- decode ---------------------------------------------------------------------------------------------------------

// What reads as false, zero or empty when it is not there.
template <class Representation>
constexpr bool mayBeAbsent(const Representation&) {
  return false;
}
template <class Number>
constexpr bool mayBeAbsent(const Flag<Number>&) {
  return true;
}
template <class Representation>
constexpr bool mayBeAbsent(const Zero<Representation>&) {
  return true;
}
template <class Representation>
constexpr bool mayBeAbsent(const List<Representation>&) {
  return true;
}

// Unknown attributes are passed over; of those that have to be there, `missing` is the first that is not.
class Decoder {
 public:
  explicit Decoder(ByteView attributes) : attributes_(readAttributes(attributes)) {}

  template <class T, class Representation>
  void operator()(const char*, Named attribute, T& value, const Representation& representation) {
    if (const Attribute* found = find(attribute)) {
      if constexpr (isOptional<T>) {
        get(found->data, value.emplace(), representation);
      } else {
        get(found->data, value, representation);
      }
    } else if (!isOptional<T> && !mayBeAbsent(representation)) {
      miss(attribute);
    }
  }
  void key(const char* name, Named attribute, auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void handle(const char* name, Named attribute, auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void readOnly(const char* name, Named attribute, auto& value, const auto& representation) {
    (*this)(name, attribute, value, representation);
  }
  void writeOnly(const char*, Named, auto&, const auto&) {}
  void header(const char*, auto&, const auto&) {}
  void wireOnly(Named attribute, auto& value, const auto& representation) {
    (*this)("", attribute, value, representation);
  }
  template <class T>
  void constant(Named attribute, T value, const auto& representation) {
    const Attribute* found = find(attribute);
    if (!found) return;
    std::int64_t told = 0;  // not a T: an enumeration need not have what the kernel tells
    get(found->data, told, representation);
    if (told != static_cast<std::int64_t>(value)) other = true;
  }
  void nest(Named attribute, auto inside) {
    const Attribute* found = find(attribute);
    Decoder decode(found ? found->data : ByteView());
    inside(decode);
    other |= decode.other;
    if (decode.missing) missing = missing ? missing : decode.missing;
  }
  void group(const char*, auto inside) { inside(*this); }

  const char* missing = nullptr;
  bool other = false;  // a constant is another one: this is something else

 private:
  const Attribute* find(Named attribute) const {
    for (const Attribute& candidate : attributes_)
      if (candidate.type == attribute.value) return &candidate;
    return nullptr;
  }
  void miss(Named attribute) { missing = missing ? missing : attribute.name; }
  std::vector<Attribute> attributes_;
};

// Decodes a whole object, or throws Malformed.
template <class T>
void decodeInto(ByteView attributes, T& object) {
  Decoder decode(attributes);
  describe(decode, object);
  if (decode.missing) malformed(std::string(decode.missing) + " is missing");
}

template <class Int, std::endian order, class T>
void get(ByteView data, T& value, Number<Int, order>) {
  Int wire;
  if (data.size() != sizeof wire) malformed("number of the wrong length");
  std::memcpy(&wire, data.data(), sizeof wire);
  value = static_cast<T>(order == std::endian::big ? bigEndian(wire) : wire);
}
inline void get(ByteView data, std::string& value, Text) {
  const auto* characters = reinterpret_cast<const char*>(data.data());
  value.assign(characters, strnlen(characters, data.size()));
}
inline void get(ByteView data, Bytes& value, Blob) { value.assign(data.begin(), data.end()); }
template <class Number>
void get(ByteView data, auto& value, const Enumeration<Number>& representation) {
  get(data, value, representation.number);
}
template <class Number>
void get(ByteView data, auto& value, const Flags<Number>& representation) {
  get(data, value, representation.number);
}
template <class Number>
void get(ByteView data, bool& value, const Boolean<Number>& representation) {
  uint32_t number;
  get(data, number, representation.number);
  value = number != 0;
}
template <class Number>
void get(ByteView data, bool& value, const Flag<Number>& representation) {
  uint32_t number;
  get(data, number, representation.number);
  value = (number & representation.bit) != 0;
}
template <class Representation>
void get(ByteView data, auto& value, const Zero<Representation>& zero) {
  get(data, value, zero.representation);
}
template <class Representation>
void get(ByteView data, auto& value, const Nested<Representation>& representation) {
  Decoder decode(data);
  decode("", representation.inner, value, representation.representation);
  if (decode.missing) malformed(std::string(decode.missing) + " is missing");
}
template <class T>
void get(ByteView data, T& value, Described) {
  decodeInto(data, value);
}
template <class T, class Representation>
void get(ByteView data, std::vector<T>& values, const List<Representation>& representation) {
  for (const Attribute& element : readAttributes(data))
    get(element.data, values.emplace_back(), representation.representation);
}

}  // namespace tproxy::netlink
