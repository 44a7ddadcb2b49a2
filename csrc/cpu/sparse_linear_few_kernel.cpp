// Sparse products of few tokens, row by row: what a row's entries are multiplied by is looked up in registers, into which
// a block of x fits, by the entries' columns. The look-up is of bytes (AVX-512 VBMI), so a number of x is cut into its
// bytes, and put together again by unpacks.
#include <algorithm>
#include <type_traits>
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

// One of the bytes of a block of x's numbers, in two registers.
struct Bytes {
  __m512i first, second;

  TAMT_INLINE __m512i at(__m512i columns) const { return _mm512_permutex2var_epi8(first, columns, second); }
};

// A block of x. A row's entries are multiplied by kEntries in a vector, up to 64 by one look-up of each byte. The
// blocks of kAtOnce tokens fit the registers; products of more than kMostTokens are faster otherwise.
template <typename Value>
struct Block;

template <>
struct Block<float> {
  static constexpr int kBytes = 4, kEntries = 16, kAtOnce = 3, kMostTokens = 3;
  Bytes bytes[kBytes];

  // So that the unpacks give vector j the entries from 16 j on: a double word at 4 i + j was at 4 j + i.
  static TAMT_INLINE __m512i arranged(__m512i columns) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), columns);
  }
  template <int vectors>
  TAMT_INLINE void look_up(__m512i columns, __m512i* numbers) const {
    const __m512i byte0 = bytes[0].at(columns), byte1 = bytes[1].at(columns);
    const __m512i byte2 = bytes[2].at(columns), byte3 = bytes[3].at(columns);
    const __m512i low01 = _mm512_unpacklo_epi8(byte0, byte1), low23 = _mm512_unpacklo_epi8(byte2, byte3);
    numbers[0] = _mm512_unpacklo_epi16(low01, low23);
    if constexpr (vectors > 1) numbers[1] = _mm512_unpackhi_epi16(low01, low23);
    if constexpr (vectors > 2) {
      const __m512i high01 = _mm512_unpackhi_epi8(byte0, byte1), high23 = _mm512_unpackhi_epi8(byte2, byte3);
      numbers[2] = _mm512_unpacklo_epi16(high01, high23);
      if constexpr (vectors > 3) numbers[3] = _mm512_unpackhi_epi16(high01, high23);
    }
  }
  static TAMT_INLINE void cut(__m512i numbers, uint8_t* to) {
    for (int byte = 0; byte < kBytes; ++byte, numbers = _mm512_srli_epi32(numbers, 8)) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + byte * kCell), _mm512_cvtepi32_epi8(numbers));
    }
  }
  // The first `left` lanes, or all.
  template <bool all>
  static TAMT_INLINE __m512i load(const float* value, int64_t left) {
    if constexpr (all) return _mm512_loadu_si512(value);
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<uint32_t>(left))), value);
  }
  template <bool all>
  static TAMT_INLINE __m512 add(__m512 sum, __m512i values, __m512i numbers, int64_t left) {
    const __m512 a = _mm512_castsi512_ps(values), b = _mm512_castsi512_ps(numbers);
    if constexpr (all) return _mm512_fmadd_ps(a, b, sum);
    const auto mask = static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<uint32_t>(left)));
    return _mm512_mask3_fmadd_ps(a, b, sum, mask);
  }
};

template <>
struct Block<BFloat16> {
  static constexpr int kBytes = 2, kEntries = 32, kAtOnce = 4, kMostTokens = 8;
  Bytes bytes[kBytes];

  static TAMT_INLINE __m512i arranged(__m512i columns) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), columns);
  }
  template <int vectors>
  TAMT_INLINE void look_up(__m512i columns, __m512i* numbers) const {
    const __m512i byte0 = bytes[0].at(columns), byte1 = bytes[1].at(columns);
    numbers[0] = _mm512_unpacklo_epi8(byte0, byte1);
    if constexpr (vectors > 1) numbers[1] = _mm512_unpackhi_epi8(byte0, byte1);
  }
  static TAMT_INLINE void cut(__m512i numbers, uint8_t* to) {
    for (int byte = 0; byte < kBytes; ++byte, numbers = _mm512_srli_epi16(numbers, 8)) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + byte * kCell), _mm512_cvtepi16_epi8(numbers));
    }
  }
  template <bool all>
  static TAMT_INLINE __m512i load(const BFloat16* value, int64_t left) {
    if constexpr (all) return _mm512_loadu_si512(value);
    return _mm512_maskz_loadu_epi16(_bzhi_u32(0xffffffff, static_cast<uint32_t>(left)), value);
  }
  template <bool all>
  static TAMT_INLINE __m512 add(__m512 sum, __m512i values, __m512i numbers, int64_t left) {
    if constexpr (!all) numbers = _mm512_maskz_mov_epi16(_bzhi_u32(0xffffffff, static_cast<uint32_t>(left)), numbers);
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(values), reinterpret_cast<__m512bh>(numbers));
  }
};

// Bytes of x as [tokens][blocks][bytes of a number][kCell]. What lies outside is zeros.
template <typename Value>
std::vector<uint8_t> cut_into_bytes(const Matrix& x) {
  using Of = Block<Value>;
  const int64_t blocks = (x.columns + kCell - 1) / kCell;
  std::vector<uint8_t> bytes(x.rows * blocks * Of::kBytes * kCell);
  for (int64_t token = 0; token < x.rows; ++token) {
    const Value* from = static_cast<const Value*>(x.data) + token * x.columns;
    for (int64_t column = 0; column < x.columns; column += Of::kEntries) {
      const int64_t block = token * blocks + column / kCell;
      uint8_t* to = bytes.data() + block * Of::kBytes * kCell + column % kCell;
      Of::cut(Of::template load<false>(from + column, std::min<int64_t>(x.columns - column, Of::kEntries)), to);
    }
  }
  return bytes;
}

// Asks for what later rows will read, each byte once, faster than the processor foresees. Where nothing but the memory
// holds the product up (far), a tenth of its time is won by asking early, into the second cache.
template <bool far>
TAMT_INLINE inline void prefetch_ahead(const char* of_row, int64_t bytes) {
  constexpr int64_t ahead = far ? 12288 : 2048;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(of_row + i + ahead, 0, far ? 2 : 3);
}

// Up to 64 entries of one row, as many as fill all vectors but the last.
template <typename Value, int tokens, int vectors>
TAMT_INLINE inline void add_vectors(
    const Block<Value>* x, const Value* value, const uint8_t* column, int64_t count, __m512* sums) {
  using Of = Block<Value>;
  constexpr int kEntries = Of::kEntries;
  const __mmask64 there = _bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(count));
  const __m512i columns = Of::arranged(_mm512_maskz_loadu_epi8(there, column));
  const int64_t left = count - (vectors - 1) * kEntries;
  for (int t = 0; t < tokens; ++t) {
    __m512i numbers[vectors];
    x[t].template look_up<vectors>(columns, numbers);
    for (int v = 0; v < vectors - 1; ++v) {
      sums[t] = Of::template add<true>(sums[t], Of::template load<true>(value + v * kEntries, left), numbers[v], left);
    }
    const __m512i last = Of::template load<false>(value + (vectors - 1) * kEntries, left);
    sums[t] = Of::template add<false>(sums[t], last, numbers[vectors - 1], left);
  }
}

// The sums of one row over its entries in one cell.
template <typename Value, int tokens>
TAMT_INLINE inline void add_row(
    const Block<Value>* x, const Value* value, const uint8_t* column, int64_t count, __m512* sums) {
  for (; count > 64; count -= 64, value += 64, column += 64) {
    add_vectors<Value, tokens, 64 / Block<Value>::kEntries>(x, value, column, 64, sums);
  }
  if constexpr (Block<Value>::kEntries == 16) {
    if (count > 48) return add_vectors<Value, tokens, 4>(x, value, column, count, sums);
    if (count > 32) return add_vectors<Value, tokens, 3>(x, value, column, count, sums);
    if (count > 16) return add_vectors<Value, tokens, 2>(x, value, column, count, sums);
  } else {
    if (count > 32) return add_vectors<Value, tokens, 2>(x, value, column, count, sums);
  }
  add_vectors<Value, tokens, 1>(x, value, column, count, sums);
}

template <typename Value, int tokens>
void multiply_rows(
    const SparseMatrix& weight, const Output& y, int64_t panel, int64_t first_token, const uint8_t* bytes) {
  constexpr int64_t kOfBlock = Block<Value>::kBytes * kCell;
  const int64_t of_token = weight.blocks() * kOfBlock;
  __m512 sums[kCell][tokens];
  for (auto& of_row : sums) std::fill(of_row, of_row + tokens, _mm512_setzero_ps());
  for (int64_t block = 0; block < weight.blocks(); ++block) {
    Block<Value> x[tokens];
    for (int t = 0; t < tokens; ++t) {
      const uint8_t* from = bytes + (first_token + t) * of_token + block * kOfBlock;
      for (int b = 0; b < Block<Value>::kBytes; ++b) {
        x[t].bytes[b] = {_mm512_loadu_si512(from + b * kCell), _mm512_loadu_si512(from + b * kCell + 64)};
      }
    }
    walk_cell<Value>(weight, panel, block, [&](int64_t row, const Value* value, const uint8_t* column,
                                               int64_t count) TAMT_INLINE {
      constexpr bool far = tokens == 1 && std::is_same_v<Value, float>;
      prefetch_ahead<far>(reinterpret_cast<const char*>(value), count * sizeof(Value));
      prefetch_ahead<far>(reinterpret_cast<const char*>(column), 1);
      __m512 of_row[tokens];
      std::copy(sums[row], sums[row] + tokens, of_row);
      add_row<Value, tokens>(x, value, column, count, of_row);
      std::copy(of_row, of_row + tokens, sums[row]);
    });
  }
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
void multiply_at_once(
    const SparseMatrix& weight, const Output& y, int64_t panel, int64_t token, int64_t count, const uint8_t* bytes) {
  if (count == 1) return multiply_rows<Value, 1>(weight, y, panel, token, bytes);
  if (count == 2) return multiply_rows<Value, 2>(weight, y, panel, token, bytes);
  if (count == 3) return multiply_rows<Value, 3>(weight, y, panel, token, bytes);
  if constexpr (Block<Value>::kAtOnce > 3) multiply_rows<Value, 4>(weight, y, panel, token, bytes);
}

template <typename Value>
bool multiply_few(const Matrix& x, const SparseMatrix& weight, const Output& y, const Parallel& parallel) {
  constexpr int64_t kAtOnce = Block<Value>::kAtOnce;
  if (x.rows > Block<Value>::kMostTokens) return false;
  // Passing twice takes a time for each row, other products one for each entry.
  const int64_t kept = weight.starts[weight.panels() * weight.blocks()];
  if (x.rows > kAtOnce && 8 * kept < weight.rows * weight.columns) return false;
  const std::vector<uint8_t> bytes = cut_into_bytes<Value>(x);
  parallel(weight.panels(), [&](int64_t panel) {
    for (int64_t token = 0; token < x.rows; token += kAtOnce) {
      multiply_at_once<Value>(weight, y, panel, token, std::min(kAtOnce, x.rows - token), bytes.data());
    }
  });
  return true;
}

}  // namespace

bool sparse_linear_few_kernel(
    const Matrix& x, const SparseMatrix& weight, const Output& y, const Parallel& parallel) {
  static const bool looks_up = __builtin_cpu_supports("avx512vbmi");
  static const bool has_bfloat16 = __builtin_cpu_supports("avx512bf16");
  if (!looks_up || instruction_set != InstructionSet::kAvx512) return false;
  if (weight.type == Type::kFloat) return multiply_few<float>(x, weight, y, parallel);
  return has_bfloat16 && multiply_few<BFloat16>(x, weight, y, parallel);
}

}  // namespace tamt
#pragma GCC pop_options
#else
namespace tamt {
bool sparse_linear_few_kernel(const Matrix&, const SparseMatrix&, const Output&, const Parallel&) { return false; }
}  // namespace tamt
#endif
