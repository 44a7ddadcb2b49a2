#include <algorithm>
#include <cmath>
#include <vector>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {
namespace {

// Entries whose scores fill a cache line.
constexpr int64_t kLine = 16;

// While a line of this row is masked, the same line of the next row is prefetched, as the processor cannot predict
// which row is next. Into the L2 cache: 2,048 rows of BERT take 0.61 ms, 0.67 with the L1 cache, and 0.77 without
// prefetching.
template <bool absolute, bool ties_kept, typename Weight>
TAMT_INLINE inline void mask_row(
    const Weight* __restrict__ weight, const float* __restrict__ score, float value, Weight* __restrict__ out,
    int64_t begin, int64_t end, const Weight* next_weight, const float* next_score) {
  const auto mask = [=](int64_t i) TAMT_INLINE {
    const float rank = absolute ? std::fabs(score[i]) : score[i];
    out[i] = keep_if(ties_kept ? rank >= value : rank > value, weight[i]);
  };
  int64_t i = begin;
  for (; i + kLine <= end; i += kLine) {
    __builtin_prefetch(next_weight + i, /* rw: read */ 0, /* locality: L2 cache */ 2);
    __builtin_prefetch(next_score + i, 0, 2);
    for (int64_t j = i; j < i + kLine; ++j) mask(j);
  }
  for (; i < end; ++i) mask(i);
}

template <bool absolute, typename Weight>
void look_up(
    const int64_t* ids, const int64_t* score_rows, const Weight* weight, const float* score, float value, int64_t cut,
    Weight* out, int64_t columns, int64_t begin, int64_t end) {
  vectorised([=]() TAMT_INLINE {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t next = std::min(i + 1, end - 1), middle = std::clamp<int64_t>(cut - ids[i] * columns, 0, columns);
      const Weight *w = weight + ids[i] * columns, *next_w = weight + ids[next] * columns;
      const float *s = score + score_rows[i] * columns, *next_s = score + score_rows[next] * columns;
      mask_row<absolute, true>(w, s, value, out + i * columns, 0, middle, next_w, next_s);
      mask_row<absolute, false>(w, s, value, out + i * columns, middle, columns, next_w, next_s);
    }
  });
}

}  // namespace

void masked_embedding_kernel(
    const int64_t* ids, const int64_t* score_rows, const void* weight, Type type, const float* score, float value,
    int64_t cut, bool absolute, void* out, int64_t columns, int64_t begin, int64_t end) {
  with_type(type, [=](auto element) {
    using Weight = decltype(element);
    auto* kernel = absolute ? &look_up<true, Weight> : &look_up<false, Weight>;
    kernel(
        ids, score_rows, static_cast<const Weight*>(weight), score, value, cut, static_cast<Weight*>(out), columns,
        begin, end);
  });
}

void masked_embedding_backward_kernel(
    const void* grad_output, Type grad_type, const int64_t* lookups, int64_t count, const void* weight_row,
    Type weight_type, void* out_row, Type out_type, int64_t columns) {
  std::vector<float> row_sum(columns);
  float* sum = row_sum.data();
  with_type(grad_type, [=](auto grad_element) {
    for (int64_t i = 0; i < count; ++i) {
      const auto* g = static_cast<const decltype(grad_element)*>(grad_output) + lookups[i] * columns;
      vectorised([=]() TAMT_INLINE {
        for (int64_t column = 0; column < columns; ++column) sum[column] += to_float(g[column]);
      });
    }
  });
  ste_backward_kernel(sum, Type::kFloat, weight_row, weight_type, out_row, out_type, 0, columns, {});
}

}  // namespace tamt
