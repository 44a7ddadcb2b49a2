// Masks that keep n of each m neighbours.
//
// Up to 64 entries, in whole groups, are ranked at once. Each pair of neighbours at the same distance is compared in one
// vector operation, whose results are bits; and each bit counts against one of the two entries. What an entry counts is
// the number of entries of its group that rank before it, held in bit-sliced counters: bit e of counter[k] is bit k of
// the count of entry e. So 2:4 takes three comparisons for each vector, and no shuffle.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

#if TAMT_HAS_AVX2
#include <immintrin.h>
#endif

namespace tamt {
namespace {

constexpr int64_t kWord = 64;

// Words ranked at once; their ranks fit into the L1 cache.
constexpr int64_t kWords = 16;

// Bit e: whether higher[e] > own[e].
uint64_t greater_generic(const float* higher, const float* own) {
  uint64_t bits = 0;
  for (int64_t e = 0; e < kWord; ++e) bits |= static_cast<uint64_t>(higher[e] > own[e]) << e;
  return bits;
}

// For each distance from 1 to m - 1 the bits of the comparisons of entries with those so far behind them.
void compare_generic(const float* rank, int64_t m, uint64_t* bits) {
  for (int64_t distance = 1; distance < m; ++distance) bits[distance] = greater_generic(rank + distance, rank);
}

#if TAMT_HAS_AVX2
TAMT_AVX2 void compare_avx2(const float* rank, int64_t m, uint64_t* bits) {
  for (int64_t distance = 1; distance < m; ++distance) {
    uint64_t word = 0;
    for (int64_t e = 0; e < kWord; e += 8) {
      const __m256 higher = _mm256_loadu_ps(rank + e + distance), own = _mm256_loadu_ps(rank + e);
      word |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(higher, own, _CMP_GT_OQ))) << e;
    }
    bits[distance] = word;
  }
}

TAMT_AVX512 void compare_avx512(const float* rank, int64_t m, uint64_t* bits) {
  for (int64_t distance = 1; distance < m; ++distance) {
    uint64_t word = 0;
    for (int64_t e = 0; e < kWord; e += 16) {
      const __m512 higher = _mm512_loadu_ps(rank + e + distance), own = _mm512_loadu_ps(rank + e);
      word |= static_cast<uint64_t>(_mm512_cmp_ps_mask(higher, own, _CMP_GT_OQ)) << e;
    }
    bits[distance] = word;
  }
}
#endif

void compare(const float* rank, int64_t m, uint64_t* bits) {
#if TAMT_HAS_AVX2
  if (instruction_set == InstructionSet::kAvx512) return compare_avx512(rank, m, bits);
  if (instruction_set == InstructionSet::kAvx2) return compare_avx2(rank, m, bits);
#endif
  compare_generic(rank, m, bits);
}

// The masks of a word, from the comparisons.
class Groups {
 public:
  explicit Groups(Pattern pattern) : pattern_(pattern), length_(kWord / pattern.m * pattern.m) {
    for (int64_t distance = 1; distance < pattern.m; ++distance) {
      for (int64_t e = 0; e < length_; ++e) {
        pairs_[distance] |= static_cast<uint64_t>(e % pattern.m + distance < pattern.m) << e;
      }
    }
    while ((int64_t{1} << digits_) < pattern.m) ++digits_;
  }

  // The thread's own: to make one takes as long as to rank a block.
  static const Groups& of(Pattern pattern) {
    thread_local Groups groups(pattern);
    if (groups.pattern_.n != pattern.n || groups.pattern_.m != pattern.m) groups = Groups(pattern);
    return groups;
  }

  // Entries of a word: whole groups.
  int64_t length() const { return length_; }

  // Bit e: whether entry e of the word is kept. Of equal entries, the one of lower index ranks before the other.
  uint64_t kept(const float* rank) const {
    std::array<uint64_t, kLongestGroup> greater;
    compare(rank, pattern_.m, greater.data());
    std::array<uint64_t, 4> counter = {};
    for (int64_t distance = 1; distance < pattern_.m; ++distance) {
      add(counter, greater[distance] & pairs_[distance]);
      add(counter, (~greater[distance] & pairs_[distance]) << distance);
    }
    uint64_t less = 0, equal = ~uint64_t{0};
    for (int64_t k = digits_ - 1; k >= 0; --k) {
      if (pattern_.n >> k & 1) {
        less |= equal & ~counter[k];
        equal &= counter[k];
      } else {
        equal &= ~counter[k];
      }
    }
    return less;
  }

 private:
  void add(std::array<uint64_t, 4>& counter, uint64_t ones) const {
    for (int64_t k = 0; k < digits_; ++k) {
      const uint64_t carry = counter[k] & ones;
      counter[k] ^= ones;
      ones = carry;
    }
  }

  Pattern pattern_;
  int64_t length_;
  std::array<uint64_t, kLongestGroup> pairs_ = {};  // bit e: whether e and the entry so far behind it share a group
  int64_t digits_ = 0;
};

template <bool absolute>
void take_ranks(const float* __restrict__ score, float* __restrict__ rank, int64_t size) {
  vectorised([=]() TAMT_INLINE {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      const float number = absolute ? std::fabs(score[i]) : score[i];
      rank[i] = number != number ? -INFINITY : number;
    }
  });
}

// Calls visit(first, size, kept) for each word of whole groups.
template <typename Visit>
void by_words(const float* score, Pattern pattern, bool absolute, int64_t begin, int64_t end, const Visit& visit) {
  const Groups& groups = Groups::of(pattern);
  const int64_t length = groups.length();
  // Behind the last entry some are compared that are in no group.
  std::array<float, (kWords + 1) * kWord + kLongestGroup> rank = {};
  for (; begin < end; begin += kWords * length) {
    const int64_t size = std::min(kWords * length, end - begin);
    if (absolute) {
      take_ranks<true>(score + begin, rank.data(), size);
    } else {
      take_ranks<false>(score + begin, rank.data(), size);
    }
    for (int64_t word = 0; word < size; word += length) {
      visit(begin + word, std::min(length, size - word), groups.kept(rank.data() + word));
    }
  }
}

#if TAMT_HAS_AVX2
// The same for float32 and groups of two or four, which lie in half a vector: an entry is compared with each other one of
// its group by a shuffle, and the counts stay in registers. Returns how many entries were masked; the rest is no vector.
template <int M>
TAMT_AVX2 int64_t keep_avx2(
    const float* weight, const float* score, int64_t n, bool absolute, float* out, int64_t size) {
  const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3), most = _mm256_set1_epi32(static_cast<int32_t>(n));
  const __m256 digits = _mm256_castsi256_ps(_mm256_set1_epi32(absolute ? INT32_MAX : -1));
  const __m256 lowest = _mm256_set1_ps(-INFINITY);
  __m256i others[M];
  __m256 first[M];  // whether the other one has the lower index
  for (int distance = 1; distance < M; ++distance) {
    others[distance] = _mm256_xor_si256(place, _mm256_set1_epi32(distance));
    first[distance] = _mm256_castsi256_ps(_mm256_cmpgt_epi32(place, others[distance]));
  }
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 rank = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(score + i), digits), lowest);  // NaN becomes -inf
    __m256i before = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int distance = 1; distance < M; ++distance) {
      const __m256 other = _mm256_permutevar_ps(rank, others[distance]);
      const __m256 more = _mm256_cmp_ps(other, rank, _CMP_GT_OQ), as_much = _mm256_cmp_ps(other, rank, _CMP_GE_OQ);
      before = _mm256_sub_epi32(before, _mm256_castps_si256(_mm256_blendv_ps(more, as_much, first[distance])));
    }
    const __m256 kept = _mm256_castsi256_ps(_mm256_cmpgt_epi32(most, before));
    _mm256_storeu_ps(out + i, _mm256_and_ps(_mm256_loadu_ps(weight + i), kept));
  }
  return i;
}
#endif

#if TAMT_HAS_AVX2
// The same with four groups of four or eight of two in a vector.
template <int M>
TAMT_AVX512 int64_t keep_avx512(
    const float* weight, const float* score, int64_t n, bool absolute, float* out, int64_t size) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i most = _mm512_set1_epi32(static_cast<int32_t>(n)), one = _mm512_set1_epi32(1);
  const __m512i digits = _mm512_set1_epi32(absolute ? INT32_MAX : -1);
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  __m512i others[M];
  __mmask16 first[M];  // whether the other one has the lower index
  for (int distance = 1; distance < M; ++distance) {
    others[distance] = _mm512_xor_si512(lanes, _mm512_set1_epi32(distance));
    first[distance] = _mm512_cmplt_epi32_mask(others[distance], lanes);
  }
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    const __m512 number = _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(score + i), digits));
    const __m512 rank = _mm512_max_ps(number, lowest);  // NaN becomes -inf
    __m512i before = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int distance = 1; distance < M; ++distance) {
      const __m512 other = _mm512_permutevar_ps(rank, others[distance]);
      const __mmask16 more = _mm512_cmp_ps_mask(other, rank, _CMP_GT_OQ);
      const __mmask16 as_much = _mm512_mask_cmp_ps_mask(first[distance], other, rank, _CMP_EQ_OQ);
      before = _mm512_mask_add_epi32(before, more | as_much, before, one);
    }
    const __mmask16 kept = _mm512_cmplt_epi32_mask(before, most);
    _mm512_storeu_ps(out + i, _mm512_maskz_loadu_ps(kept, weight + i));
  }
  return i;
}
#endif

// Masks what is fastest masked without ranks in memory; returns how many entries that are.
template <typename Weight, typename Out>
int64_t keep_without_ranks(
    const Weight* weight, const float* score, Pattern pattern, bool absolute, Out* out, int64_t size) {
#if TAMT_HAS_AVX2
  if constexpr (std::is_same_v<Weight, float> && std::is_same_v<Out, float>) {
    if (instruction_set == InstructionSet::kAvx512) {
      if (pattern.m == 4) return keep_avx512<4>(weight, score, pattern.n, absolute, out, size);
      if (pattern.m == 2) return keep_avx512<2>(weight, score, pattern.n, absolute, out, size);
    }
    if (instruction_set == InstructionSet::kAvx2) {
      if (pattern.m == 4) return keep_avx2<4>(weight, score, pattern.n, absolute, out, size);
      if (pattern.m == 2) return keep_avx2<2>(weight, score, pattern.n, absolute, out, size);
    }
  }
#endif
  return 0;
}

template <typename Weight, typename Out>
TAMT_INLINE inline void keep_half(
    const Weight* __restrict__ from, Out* __restrict__ to, uint32_t kept, int32_t size) {
#pragma GCC ivdep
  for (int32_t i = 0; i < size; ++i) to[i] = keep_if((kept >> i & 1) != 0, convert<Out>(from[i]));
}

}  // namespace

void pattern_mask_kernel(
    const float* score, Pattern pattern, bool absolute, bool* mask, int64_t begin, int64_t end) {
  by_words(score, pattern, absolute, begin, end, [=](int64_t first, int64_t size, uint64_t kept) {
    for (int64_t i = 0; i < size; ++i) mask[first + i] = kept >> i & 1;
  });
}

void pattern_weight_kernel(
    const void* weight, Type weight_type, const float* score, Pattern pattern, bool absolute, void* out,
    Type out_type, int64_t begin, int64_t end) {
  with_type(weight_type, [&](auto weight_element) {
    with_type(out_type, [&](auto out_element) {
      using Weight = decltype(weight_element);
      using Out = decltype(out_element);
      const auto* all = static_cast<const Weight*>(weight);
      auto* masked = static_cast<Out*>(out);
      const int64_t rest =
          begin + keep_without_ranks(all + begin, score + begin, pattern, absolute, masked + begin, end - begin);
      by_words(score, pattern, absolute, rest, end, [=](int64_t first, int64_t size, uint64_t kept) {
        const Weight* from = all + first;
        Out* to = masked + first;
        const auto low = static_cast<int32_t>(std::min(size, kWord / 2)), high = static_cast<int32_t>(size) - low;
        vectorised([=]() TAMT_INLINE {
          if (low == 32 && high == 32) {  // what vectorises without a remainder
            keep_half(from, to, static_cast<uint32_t>(kept), 32);
            keep_half(from + 32, to + 32, static_cast<uint32_t>(kept >> 32), 32);
          } else {
            keep_half(from, to, static_cast<uint32_t>(kept), low);
            keep_half(from + low, to + low, static_cast<uint32_t>(kept >> 32), high);
          }
        });
      });
    });
  });
}

}  // namespace tamt
