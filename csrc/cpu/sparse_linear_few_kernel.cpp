// Sparse products of few tokens, row by row: what a row's entries are multiplied by is looked up in registers, into which
// a block of x fits, by the entries' columns. The look-up is of bytes (AVX-512 VBMI), so a number of x is cut into its
// bytes, and put together again by unpacks.
#include <algorithm>
#include <vector>

#include "convert.h"
#include "sparse_product.h"

#if TAMT_HAS_AVX2
#include <immintrin.h>

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC's own header, whose undefined vectors are meant
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma,bmi,bmi2,popcnt,prefer-vector-width=512")

namespace tamt {
namespace {

constexpr int64_t kBytes = 64;
#include "sparse_linear_loops.h"

constexpr int kMostAtOnce = 4;  // tokens of which a row's entries are read once

TAMT_INLINE inline __m512i look_up(__m512i columns, const uint8_t* bytes) {
  return _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes), columns, _mm512_loadu_si512(bytes + 64));
}

template <typename Value>
struct Lookup;

template <>
struct Lookup<float> {
  static constexpr int kBytes = 4;
  // So that the unpacks give vector j the entries from 16 j on: a double word at 4 i + j was at 4 j + i.
  static TAMT_INLINE __m512i arranged(__m512i columns) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), columns);
  }
  // Of the numbers at up to 64 columns, times as many values, the sums in 16 lanes.
  static TAMT_INLINE __m512 add(__m512 sum, const float* value, int64_t count, __m512i columns, const uint8_t* x) {
    const __m512i byte0 = look_up(columns, x), byte1 = look_up(columns, x + kCell);
    const __m512i byte2 = look_up(columns, x + 2 * kCell), byte3 = look_up(columns, x + 3 * kCell);
    const auto multiply = [&](int64_t first, __m512i numbers) TAMT_INLINE {
      const auto mask = static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<uint32_t>(count - first)));
      const __m512 values = _mm512_maskz_loadu_ps(mask, value + first);
      sum = _mm512_mask3_fmadd_ps(values, _mm512_castsi512_ps(numbers), sum, mask);
    };
    const __m512i low01 = _mm512_unpacklo_epi8(byte0, byte1), low23 = _mm512_unpacklo_epi8(byte2, byte3);
    multiply(0, _mm512_unpacklo_epi16(low01, low23));
    if (count > 16) multiply(16, _mm512_unpackhi_epi16(low01, low23));
    if (count > 32) {
      const __m512i high01 = _mm512_unpackhi_epi8(byte0, byte1), high23 = _mm512_unpackhi_epi8(byte2, byte3);
      multiply(32, _mm512_unpacklo_epi16(high01, high23));
      if (count > 48) multiply(48, _mm512_unpackhi_epi16(high01, high23));
    }
    return sum;
  }
};

template <>
struct Lookup<BFloat16> {
  static constexpr int kBytes = 2;
  static TAMT_INLINE __m512i arranged(__m512i columns) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), columns);
  }
  static TAMT_INLINE __m512 add(__m512 sum, const BFloat16* value, int64_t count, __m512i columns, const uint8_t* x) {
    const __m512i byte0 = look_up(columns, x), byte1 = look_up(columns, x + kCell);
    const auto multiply = [&](int64_t first, __m512i numbers) TAMT_INLINE {
      const __mmask32 mask = _bzhi_u32(0xffffffff, static_cast<uint32_t>(count - first));
      const __m512i values = _mm512_maskz_loadu_epi16(mask, value + first);
      const __m512i kept = _mm512_maskz_mov_epi16(mask, numbers);
      sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(values), reinterpret_cast<__m512bh>(kept));
    };
    multiply(0, _mm512_unpacklo_epi8(byte0, byte1));
    if (count > 32) multiply(32, _mm512_unpackhi_epi8(byte0, byte1));
    return sum;
  }
};

// Bytes of x as [tokens][blocks][bytes of a number][kCell].
template <typename Value>
std::vector<uint8_t> cut_into_bytes(const Matrix& x) {
  constexpr int kBytes = Lookup<Value>::kBytes;
  const int64_t blocks = (x.columns + kCell - 1) / kCell;
  std::vector<uint8_t> bytes(x.rows * blocks * kBytes * kCell);
  for (int64_t token = 0; token < x.rows; ++token) {
    const auto* from = static_cast<const uint8_t*>(x.data) + token * x.columns * kBytes;
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t* to = bytes.data() + (token * blocks + block) * kBytes * kCell;
      const int64_t width = std::min(kCell, x.columns - block * kCell);
      for (int64_t i = 0; i < width; ++i) {
        for (int byte = 0; byte < kBytes; ++byte) to[byte * kCell + i] = from[(block * kCell + i) * kBytes + byte];
      }
    }
  }
  return bytes;
}

// The sums of one row over its entries in one cell.
template <typename Value>
TAMT_INLINE inline __m512 add_row(
    __m512 sum, const Value* value, const uint8_t* column, int64_t count, const uint8_t* x) {
  for (int64_t entry = 0; entry < count; entry += 64) {
    const int64_t now = std::min<int64_t>(count - entry, 64);
    const __mmask64 there = _bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(now));
    const __m512i columns = Lookup<Value>::arranged(_mm512_maskz_loadu_epi8(there, column + entry));
    sum = Lookup<Value>::add(sum, value + entry, now, columns, x);
  }
  return sum;
}

template <typename Value, int tokens>
void multiply_rows(
    const SparseMatrix& weight, const Output& y, int64_t panel, int64_t first_token, const uint8_t* bytes) {
  constexpr int64_t kOfBlock = Lookup<Value>::kBytes * kCell;
  const int64_t of_token = weight.blocks() * kOfBlock;
  __m512 sums[kCell][tokens];
  for (auto& of_row : sums) std::fill(of_row, of_row + tokens, _mm512_setzero_ps());
  walk_panel<Value>(weight, panel, [&](int64_t row, int64_t block, const Value* value, const uint8_t* column,
                                       int64_t count) TAMT_INLINE {
    const uint8_t* x = bytes + first_token * of_token + block * kOfBlock;
    for (int t = 0; t < tokens; ++t) sums[row][t] = add_row(sums[row][t], value, column, count, x + t * of_token);
  });
  const int64_t begin = panel * kCell, rows = std::min(kCell, weight.rows - begin);
  for (int64_t row = 0; row < rows; ++row) {
    for (int t = 0; t < tokens; ++t) {
      const float sum = _mm512_reduce_add_ps(sums[row][t]) + (y.bias ? y.bias[begin + row] : 0.0f);
      const int64_t at = (first_token + t) * weight.rows + begin + row;
      if (y.type == Type::kFloat) {
        static_cast<float*>(y.data)[at] = sum;
      } else {
        static_cast<BFloat16*>(y.data)[at] = from_float<BFloat16>(sum);
      }
    }
  }
}

template <typename Value>
void multiply_few(const Matrix& x, const SparseMatrix& weight, const Output& y, const Parallel& parallel) {
  const std::vector<uint8_t> bytes = cut_into_bytes<Value>(x);
  constexpr decltype(&multiply_rows<Value, 1>) by_tokens[kMostAtOnce] = {
      &multiply_rows<Value, 1>, &multiply_rows<Value, 2>, &multiply_rows<Value, 3>, &multiply_rows<Value, 4>};
  parallel(weight.panels(), [&](int64_t panel) {
    for (int64_t token = 0; token < x.rows; token += kMostAtOnce) {
      const int64_t now = std::min<int64_t>(kMostAtOnce, x.rows - token);
      by_tokens[now - 1](weight, y, panel, token, bytes.data());
    }
  });
}

}  // namespace

bool sparse_linear_few_kernel(
    const Matrix& x, const SparseMatrix& weight, const Output& y, const Parallel& parallel) {
  static const bool supported = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
  if (!supported || instruction_set != InstructionSet::kAvx512 || x.rows > kFewTokens) return false;
  const auto run = weight.type == Type::kFloat ? &multiply_few<float> : &multiply_few<BFloat16>;
  run(x, weight, y, parallel);
  return true;
}

}  // namespace tamt
#pragma GCC pop_options
#else
namespace tamt {
bool sparse_linear_few_kernel(const Matrix&, const SparseMatrix&, const Output&, const Parallel&) { return false; }
}  // namespace tamt
#endif
