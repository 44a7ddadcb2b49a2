#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include "../operations.h"
#include "kernels.h"
#include "lookups.h"

namespace tamt {
namespace {

const char* row_of(const at::Tensor& matrix, int64_t row) {
  return static_cast<const char*>(matrix.const_data_ptr()) + row * matrix.size(1) * matrix.element_size();
}

}  // namespace

at::Tensor masked_embedding_cpu(
    const at::Tensor& ids, const at::Tensor& weight, const at::Tensor& score, const at::Tensor& value,
    const at::Tensor& cut, std::optional<int64_t> /* padding_idx matters only for the gradient */, bool absolute) {
  const at::Tensor w = weight.contiguous(), rows = rows_to_look_up("masked_embedding", ids, w.size(0));
  const int64_t count = rows.numel(), columns = w.size(1);
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
        rows.const_data_ptr<int64_t>(), score_rows.const_data_ptr<int64_t>(), w.const_data_ptr(), type_of(w),
        s.const_data_ptr<float>(), threshold, tie_cut, absolute, out.mutable_data_ptr(), columns, first, last);
  });
  return out;
}

at::Tensor masked_embedding_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& ids, const at::Tensor& weight,
    std::optional<int64_t> padding_idx, at::ScalarType dtype) {
  const at::Tensor w = weight.contiguous(), g = grad_output.contiguous();
  const int64_t columns = w.size(1);
  at::Tensor grad_score = weight.new_zeros(weight.sizes(), dtype);
  for_each_row_looked_up(ids, padding_idx, columns, [&](int64_t row, const int64_t* lookups, int64_t count) {
    masked_embedding_backward_kernel(
        g.const_data_ptr(), type_of(g), lookups, count, row_of(w, row), type_of(w),
        const_cast<char*>(row_of(grad_score, row)), type_of(grad_score), columns);
  });
  return grad_score;
}

}  // namespace tamt
