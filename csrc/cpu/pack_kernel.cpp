#include <algorithm>
#include <cstring>

#include "instruction_set.h"
#include "kernels.h"

namespace tamt {

void pack_mask_kernel(const bool* mask, int64_t size, uint8_t* packed, int64_t begin, int64_t end) {
  const int64_t whole = std::clamp(size / 8, begin, end);
  // Eight bools read as one number hold a bit every eight; the multiplication gathers them in its top byte.
  vectorised([=]() TAMT_INLINE {
    for (int64_t i = begin; i < whole; ++i) {
      uint64_t entries;
      std::memcpy(&entries, mask + 8 * i, 8);
      packed[i] = static_cast<uint8_t>(entries * 0x0102040810204080u >> 56);
    }
  });
  for (int64_t i = whole; i < end; ++i) {
    packed[i] = 0;
    for (int64_t j = 8 * i; j < size; ++j) packed[i] |= static_cast<uint8_t>(mask[j] << (j % 8));
  }
}

void unpack_mask_kernel(const uint8_t* packed, bool* mask, int64_t size, int64_t begin, int64_t end) {
  const int64_t whole = std::clamp(size / 8, begin, end);
  // The reverse: the byte eight times over, another bit of each kept, and whatever bit it is moved to the lowest place.
  vectorised([=]() TAMT_INLINE {
    for (int64_t i = begin; i < whole; ++i) {
      const uint64_t bits = packed[i] * 0x0101010101010101u & 0x8040201008040201u;
      const uint64_t entries = (bits + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
      std::memcpy(mask + 8 * i, &entries, 8);
    }
  });
  for (int64_t j = 8 * whole; j < std::min(8 * end, size); ++j) mask[j] = packed[j / 8] >> (j % 8) & 1;
}

}  // namespace tamt
