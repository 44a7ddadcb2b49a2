// Conversions of half-precision numbers, exact or rounded to nearest even. They have no branches, so that loops
// vectorise without F16C or AVX-512 instructions. Does not use torch.
#pragma once

#include <cstdint>
#include <cstring>

#include "../types.h"
#include "instruction_set.h"

namespace tamt {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Calls `visit` with a value of the C++ type for `type`.
template <typename Visit>
void with_type(Type type, const Visit& visit) {
  switch (type) {
    case Type::kFloat:
      return visit(float{});
    case Type::kHalf:
      return visit(Half{});
    case Type::kBFloat16:
      return visit(BFloat16{});
  }
}

TAMT_INLINE inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

TAMT_INLINE inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr uint32_t kInfinity = 0x7f800000u;
constexpr uint32_t kExponentGap = (127 - 15) << 23;  // between the exponent biases of float and half

TAMT_INLINE inline float to_float(float value) { return value; }

TAMT_INLINE inline float to_float(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

TAMT_INLINE inline float to_float(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t finite = (magnitude << 13) + kExponentGap;
  const uint32_t special = finite + kExponentGap;  // infinity and NaN, which have the largest exponent in both types
  const uint32_t denormal = bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t normal = magnitude >= 0x7c00u ? special : finite;
  return float_of((magnitude < 0x400u ? denormal : normal) | sign);
}

template <typename To>
To from_float(float value);

template <>
TAMT_INLINE inline float from_float<float>(float value) {
  return value;
}

template <>
TAMT_INLINE inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = 0x7fc0u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > kInfinity ? nan : rounded)};
}

template <>
TAMT_INLINE inline Half from_float<Half>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (magnitude - kExponentGap + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // A half denormal is a multiple of 2^-24, the last place of 0.5, so the addition of 0.5 rounds to it.
  const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t finite = magnitude < (uint32_t{127 - 14} << 23) ? denormal : normal;
  const uint32_t special = magnitude > kInfinity ? 0x7e00u : 0x7c00u;
  return {static_cast<uint16_t>((magnitude >= (uint32_t{127 + 16} << 23) ? special : finite) | sign)};
}

template <typename To, typename From>
TAMT_INLINE inline To convert(From value) {
  return from_float<To>(to_float(value));
}

// Without a change of type the bits stay the same, even those of a NaN.
template <>
TAMT_INLINE inline float convert<float, float>(float value) {
  return value;
}
template <>
TAMT_INLINE inline Half convert<Half, Half>(Half value) {
  return value;
}
template <>
TAMT_INLINE inline BFloat16 convert<BFloat16, BFloat16>(BFloat16 value) {
  return value;
}

// The value if it is kept, else 0, without a branch.
TAMT_INLINE inline float keep_if(bool kept, float value) { return float_of(bits_of(value) & (kept ? ~0u : 0u)); }
TAMT_INLINE inline Half keep_if(bool kept, Half value) {
  return {static_cast<uint16_t>(value.bits & (kept ? 0xffffu : 0u))};
}
TAMT_INLINE inline BFloat16 keep_if(bool kept, BFloat16 value) {
  return {static_cast<uint16_t>(value.bits & (kept ? 0xffffu : 0u))};
}

}  // namespace tamt
