#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../operations.h"
#include "kernels.h"
#include "lookups.h"
#include "sparse_of.h"

namespace tamt {

at::Tensor sparse_embedding_cpu(
    const at::Tensor& ids, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t row_count, int64_t width,
    std::optional<int64_t> /* padding_idx: of the gradient only */) {
  const at::Tensor rows = rows_to_look_up("sparse_embedding", ids, row_count);
  const at::Tensor entries = values.contiguous();
  const SparseMatrix weight = sparse_of(row_count, width, entries, columns, order, counts, starts);
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(width);
  at::Tensor out = at::empty(shape, values.options());
  at::parallel_for(0, rows.numel(), grain_of_rows(width), [&](int64_t begin, int64_t end) {
    sparse_embedding_kernel(rows.const_data_ptr<int64_t>(), weight, out.mutable_data_ptr(), begin, end);
  });
  return out;
}

at::Tensor sparse_embedding_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& ids, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t row_count, std::optional<int64_t> padding_idx) {
  const at::Tensor grads = grad_output.contiguous();
  const int64_t width = grads.size(-1);
  at::Tensor grad_values = at::zeros(columns.sizes(), grads.options());
  const SparseMatrix pattern = sparse_of(row_count, width, grad_values, columns, order, counts, starts);
  const Matrix matrix{grads.const_data_ptr(), type_of(grads), ids.numel(), width};
  for_each_row_looked_up(ids, padding_idx, width, [&](int64_t row, const int64_t* lookups, int64_t count) {
    sparse_embedding_backward_kernel(matrix, lookups, count, pattern, row, grad_values.mutable_data_ptr());
  });
  return grad_values;
}

}  // namespace tamt
