#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels.h"

namespace tamt {
namespace {

// Row b has the eight bits of b as bytes, the lowest bit first.
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
    // Eight bools read as one number have a bit in every byte. The multiplication gathers them in its top byte.
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
  const auto kept = [=](int64_t index) {
    const float rank = absolute ? std::fabs(score[index]) : score[index];
    return rank > value || (rank == value && index < cut);
  };
  int64_t i = begin;
#if defined(__SSE2__)
  const __m128 sign = _mm_set1_ps(absolute ? -0.0f : 0.0f), threshold = _mm_set1_ps(value);
  for (; i + 8 <= end; i += 8) {
    const __m128 low = _mm_andnot_ps(sign, _mm_loadu_ps(score + i));
    const __m128 high = _mm_andnot_ps(sign, _mm_loadu_ps(score + i + 4));
    const int above =
        _mm_movemask_ps(_mm_cmpgt_ps(low, threshold)) | _mm_movemask_ps(_mm_cmpgt_ps(high, threshold)) << 4;
    const int ties =
        _mm_movemask_ps(_mm_cmpeq_ps(low, threshold)) | _mm_movemask_ps(_mm_cmpeq_ps(high, threshold)) << 4;
    const int before_cut = (1 << std::clamp<int64_t>(cut - i, 0, 8)) - 1;
    packed[i / 8] = static_cast<uint8_t>(above | (ties & before_cut));
  }
#endif
  for (; i < end; i += 8) {
    packed[i / 8] = 0;
    for (int64_t j = i; j < std::min(i + 8, end); ++j) packed[i / 8] |= static_cast<uint8_t>(kept(j) << (j % 8));
  }
}

void unpack_mask_kernel(const uint8_t* packed, bool* mask, int64_t size, int64_t begin, int64_t end) {
  const int64_t whole = std::clamp(size / 8, begin, end);
  for (int64_t i = begin; i < whole; ++i) std::memcpy(mask + 8 * i, kBools[packed[i]].data(), 8);
  for (int64_t j = 8 * whole; j < std::min(8 * end, size); ++j) mask[j] = packed[j / 8] >> (j % 8) & 1;
}

}  // namespace tamt
