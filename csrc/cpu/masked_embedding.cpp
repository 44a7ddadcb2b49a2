#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../operations.h"
#include "kernels.h"

namespace tamt {
namespace {

const char* row_of(const at::Tensor& matrix, int64_t row) {
  return static_cast<const char*>(matrix.const_data_ptr()) + row * matrix.size(1) * matrix.element_size();
}

}  // namespace

at::Tensor masked_embedding_cpu(
    const at::Tensor& ids, const at::Tensor& weight, const at::Tensor& score, const at::Tensor& value,
    const at::Tensor& cut, std::optional<int64_t> /* padding_idx matters only for the gradient */, bool absolute) {
  const at::Tensor rows = ids.to(at::kLong).contiguous(), w = weight.contiguous();
  const int64_t count = rows.numel(), row_count = w.size(0), columns = w.size(1);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_INDEX(
        0 <= row[i] && row[i] < row_count, "masked_embedding: ids has ", row[i], " but must have ids from 0 to ",
        row_count - 1, ", the rows of weight");
  }
  // Of a half-precision score only the rows that are looked up are converted.
  const bool gathered = score.scalar_type() != at::kFloat;
  const at::Tensor s = gathered ? score.index_select(0, rows.view(-1)).to(at::kFloat) : score.contiguous();
  const at::Tensor score_rows = gathered ? at::arange(count, rows.options()) : rows;
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(columns);
  at::Tensor out = at::empty(shape, w.options());
  const float threshold = *value.const_data_ptr<float>();
  const int64_t tie_cut = *cut.const_data_ptr<int64_t>();
  at::parallel_for(0, count, grain_of_rows(columns), [&](int64_t first, int64_t last) {
    masked_embedding_kernel(
        row, score_rows.const_data_ptr<int64_t>(), w.const_data_ptr(), type_of(w), s.const_data_ptr<float>(), threshold,
        tie_cut, absolute, out.mutable_data_ptr(), columns, first, last);
  });
  return out;
}

at::Tensor masked_embedding_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& ids, const at::Tensor& weight,
    std::optional<int64_t> padding_idx, at::ScalarType dtype) {
  const at::Tensor rows = ids.to(at::kLong).contiguous(), w = weight.contiguous(), g = grad_output.contiguous();
  const int64_t columns = w.size(1);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  at::Tensor grad_score = weight.new_zeros(weight.sizes(), dtype);

  // Look-ups are sorted by row, so that one thread sums all look-ups of a row in order: the same bits for any number of
  // threads.
  std::vector<int64_t> lookups(rows.numel());
  std::iota(lookups.begin(), lookups.end(), 0);
  std::stable_sort(lookups.begin(), lookups.end(), [row](int64_t a, int64_t b) { return row[a] < row[b]; });
  std::vector<int64_t> starts;  // of each row's look-ups
  for (size_t i = 0; i < lookups.size(); ++i) {
    if (i == 0 || row[lookups[i]] != row[lookups[i - 1]]) starts.push_back(static_cast<int64_t>(i));
  }
  const auto distinct = static_cast<int64_t>(starts.size());
  starts.push_back(rows.numel());

  at::parallel_for(0, distinct, grain_of_rows(columns), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t* of_row = lookups.data() + starts[i];
      if (padding_idx == row[*of_row]) continue;
      masked_embedding_backward_kernel(
          g.const_data_ptr(), type_of(g), of_row, starts[i + 1] - starts[i], row_of(w, row[*of_row]), type_of(w),
          const_cast<char*>(row_of(grad_score, row[*of_row])), type_of(grad_score), columns);
    }
  });
  return grad_score;
}

}  // namespace tamt
