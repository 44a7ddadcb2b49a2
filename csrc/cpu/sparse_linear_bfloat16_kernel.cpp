// Sparse products by the processor's bfloat16 instruction, which multiplies pairs: two entries of a row, whatever their
// columns, by what two unpacks make of those columns. Two of an instruction's products are rounded together, and
// subnormal numbers count as zeros.
#include <algorithm>

#include "convert.h"
#include "sparse_product.h"

#if TAMT_HAS_AVX2
#include <immintrin.h>

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC's own header, whose undefined vectors are meant
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2,popcnt,prefer-vector-width=512")

namespace tamt {
namespace {

constexpr int64_t kBytes = 64;
#include "sparse_linear_loops.h"

constexpr int64_t kTokens = 32;  // in a vector

// Tokens in the order in which the unpacks of two columns give first the pairs of tokens 0 to 15, then those of 16 to 31.
TAMT_INLINE inline __m512i in_pairs_order(Vector first, Vector second) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm512_permutexvar_epi64(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

void pack_halves(const Matrix& x, int64_t token, int64_t tile, int64_t begin, int64_t end, void* packed) {
  auto* to = static_cast<uint16_t*>(packed);
  for (int64_t column = begin; column < end; column += kLanes) {
    for (int64_t i = 0; i < tile; i += kTokens) {
      Vector first[kLanes], second[kLanes];
      load_columns<BFloat16>(x, token + i, column, first);
      load_columns<BFloat16>(x, token + i + kLanes, column, second);
      for (int64_t c = 0; c < std::min(kLanes, end - column); ++c) {
        _mm512_store_si512(to + (column + c) * tile + i, in_pairs_order(first[c], second[c]));
      }
    }
  }
}

// As add_entries, by pairs; an entry left over is paired with a column of zeros.
template <int vectors>
TAMT_INLINE inline void add_pairs(
    const BFloat16* value, const uint8_t* column, int64_t count, const uint16_t* x, float* sums) {
  constexpr int64_t tile = vectors * kTokens;
  __m512 even[2 * vectors], odd[2 * vectors];
  for (int v = 0; v < 2 * vectors; ++v) {
    even[v] = _mm512_load_ps(sums + kLanes * v);
    odd[v] = _mm512_setzero_ps();
  }
  const auto multiply = [](__m512i first, __m512i second, __m512bh factors, __m512* to) TAMT_INLINE {
    asm volatile("" : "+v"(first), "+v"(second));  // loaded once, not by each of the unpacks
    to[0] = _mm512_dpbf16_ps(to[0], factors, reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(first, second)));
    to[1] = _mm512_dpbf16_ps(to[1], factors, reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(first, second)));
  };
  const auto add = [=](int64_t entry, __m512* to) TAMT_INLINE {
    int32_t pair;
    std::memcpy(&pair, value + entry, sizeof pair);
    const auto *first = x + column[entry] * tile, *second = x + column[entry + 1] * tile;
    for (int v = 0; v < vectors; ++v) {
      multiply(
          _mm512_load_si512(first + kTokens * v), _mm512_load_si512(second + kTokens * v),
          reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), to + 2 * v);
    }
  };
  int64_t entry = 0;
  for (; entry + 8 <= count; entry += 8) {
    add(entry, even);
    add(entry + 2, odd);
    add(entry + 4, even);
    add(entry + 6, odd);
  }
  for (; entry + 2 <= count; entry += 2) add(entry, even);
  if (entry < count) {
    const auto* first = x + column[entry] * tile;
    for (int v = 0; v < vectors; ++v) {
      multiply(
          _mm512_load_si512(first + kTokens * v), _mm512_setzero_si512(),
          reinterpret_cast<__m512bh>(_mm512_set1_epi32(value[entry].bits)), even + 2 * v);
    }
  }
  for (int v = 0; v < 2 * vectors; ++v) _mm512_store_ps(sums + kLanes * v, _mm512_add_ps(even[v], odd[v]));
}

template <int vectors>
void multiply_halves_by(const SparseMatrix& weight, int64_t panel, const void* x, float* sums) {
  constexpr int64_t tile = vectors * kTokens;
  std::fill(sums, sums + kCell * tile, 0.0f);
  walk_panel<BFloat16>(weight, panel, [=](int64_t row, int64_t block, const BFloat16* value, const uint8_t* column,
                                          int64_t count) TAMT_INLINE {
    add_pairs<vectors>(value, column, count, static_cast<const uint16_t*>(x) + block * kCell * tile, sums + row * tile);
  });
}

void multiply_halves(const SparseMatrix& weight, int64_t panel, int64_t tile, const void* x, float* sums) {
  return tile == kTokens ? multiply_halves_by<1>(weight, panel, x, sums) : multiply_halves_by<2>(weight, panel, x, sums);
}

}  // namespace

const ProductLoops* bfloat16_loops() {
  static constexpr ProductLoops loops{kTokens, 2 * kTokens, 2, pack_halves, multiply_halves, unpack, nullptr};
  static const bool supported = __builtin_cpu_supports("avx512bf16");
  return supported ? &loops : nullptr;
}

}  // namespace tamt
#pragma GCC pop_options
#else
namespace tamt {
const ProductLoops* bfloat16_loops() { return nullptr; }
}  // namespace tamt
#endif
