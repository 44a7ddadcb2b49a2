#include <algorithm>

#include "instruction_set.h"
#include "kernels.h"

namespace tamt {
namespace {

// In every type, a number is zero if all its bits are.
template <typename Word>
TAMT_INLINE inline void prune(
    Word* __restrict__ words, const uint8_t* __restrict__ packed, int64_t size, int64_t begin, int64_t end) {
  const int64_t whole = std::clamp(size / 8, begin, end);
  for (int64_t i = begin; i < whole; ++i) {
    const uint32_t bits = packed[i];
    for (int j = 0; j < 8; ++j) words[8 * i + j] &= static_cast<Word>(-(bits >> j & 1));
  }
  for (int64_t j = 8 * whole; j < std::min(8 * end, size); ++j) {
    words[j] &= static_cast<Word>(-(uint32_t{packed[j / 8]} >> (j % 8) & 1));
  }
}

}  // namespace

void prune_kernel(void* entries, Type type, const uint8_t* packed, int64_t size, int64_t begin, int64_t end) {
  if (type == Type::kFloat) {
    auto* words = static_cast<uint32_t*>(entries);
    vectorised([=]() TAMT_INLINE { prune(words, packed, size, begin, end); });
  } else {
    auto* words = static_cast<uint16_t*>(entries);
    vectorised([=]() TAMT_INLINE { prune(words, packed, size, begin, end); });
  }
}

}  // namespace tamt
