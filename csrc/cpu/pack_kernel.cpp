#include <algorithm>
#include <array>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels.h"

namespace tamt {
namespace {

// Row b holds the eight bits of b as bytes, the lowest first.
constexpr auto kBools = [] {
  std::array<std::array<uint8_t, 8>, 256> table{};
  for (int byte = 0; byte < 256; ++byte) {
    for (int bit = 0; bit < 8; ++bit) table[byte][bit] = byte >> bit & 1;
  }
  return table;
}();

}  // namespace

void pack_mask_kernel(const bool* mask, int64_t size, uint8_t* packed, int64_t begin, int64_t end) {
  const int64_t whole = std::clamp(size / 8, begin, end);
  int64_t i = begin;
#if defined(__SSE2__)
  for (; i + 2 <= whole; i += 2) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask + 8 * i));
    const auto bits = static_cast<uint16_t>(_mm_movemask_epi8(_mm_slli_epi16(entries, 7)));
    std::memcpy(packed + i, &bits, 2);
  }
#endif
  for (; i < whole; ++i) {
    // Eight bools read as one number hold a bit every eight; the multiplication gathers them in its top byte.
    uint64_t entries;
    std::memcpy(&entries, mask + 8 * i, 8);
    packed[i] = static_cast<uint8_t>(entries * 0x0102040810204080u >> 56);
  }
  for (; i < end; ++i) {
    packed[i] = 0;
    for (int64_t j = 8 * i; j < size; ++j) packed[i] |= static_cast<uint8_t>(mask[j] << (j % 8));
  }
}

void pack_kept_kernel(
    const float* score, float value, int64_t cut, bool absolute, uint8_t* packed, int64_t begin, int64_t end) {
  constexpr int64_t kTile = 2048;
  bool mask[kTile];
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t size = std::min(kTile, end - first);
    binarize_kernel(score + first, value, cut - first, absolute, mask, 0, size);
    pack_mask_kernel(mask, size, packed + first / 8, 0, (size + 7) / 8);
  }
}

void unpack_mask_kernel(const uint8_t* packed, bool* mask, int64_t size, int64_t begin, int64_t end) {
  const int64_t whole = std::clamp(size / 8, begin, end);
  for (int64_t i = begin; i < whole; ++i) std::memcpy(mask + 8 * i, kBools[packed[i]].data(), 8);
  for (int64_t j = 8 * whole; j < std::min(8 * end, size); ++j) mask[j] = packed[j / 8] >> (j % 8) & 1;
}

}  // namespace tamt
