// Outputs larger than the cache, written past it. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "instruction_set.h"

namespace tamt {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kTileBytes = 4096;  // computed at a time: it and what it is computed of stay in the L1 cache

// Copies a tile from the cache. Whole lines are not read from memory first, as a store would have them read.
TAMT_INLINE inline void copy_past_cache(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(to) % kCacheLine == 0 && bytes % kCacheLine == 0) {
    for (int64_t i = 0; i < bytes / 16; ++i) {
      _mm_stream_si128(static_cast<__m128i*>(to) + i, _mm_load_si128(static_cast<const __m128i*>(from) + i));
    }
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

// Calls fill(to, first, last), marked TAMT_INLINE, for tiles of `out` from `begin` to `end`: it is to write the entries
// first … last - 1 to to[0], to[1], ….
template <typename Out, typename Fill>
TAMT_INLINE inline void write(Out* out, int64_t begin, int64_t end, bool past_cache, const Fill& fill) {
  constexpr int64_t kTile = kTileBytes / sizeof(Out);
  alignas(kCacheLine) Out tile[kTile];
  // The first tile ends where a cache line begins, and all others with it.
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out + begin) % kCacheLine / sizeof(Out));
  for (int64_t first = begin, last; first < end; first = last) {
    last = std::min(end, first + kTile - (first == begin ? misaligned : 0));
    Out* to = past_cache ? tile : out + first;
    fill(to, first, last);
    if (past_cache) copy_past_cache(out + first, tile, (last - first) * static_cast<int64_t>(sizeof(Out)));
  }
#if defined(__SSE2__)
  if (past_cache) _mm_sfence();  // before another thread is told that it may read
#endif
}

}  // namespace tamt
