#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../operations.h"
#include "kernels.h"
#include "sparse_of.h"

namespace tamt {

at::Tensor sparse_embedding_cpu(
    const at::Tensor& ids, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t row_count, int64_t width,
    std::optional<int64_t> /* padding_idx: of the gradient only */) {
  const at::Tensor rows = ids.to(at::kLong).contiguous();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    TORCH_CHECK_INDEX(
        0 <= row[i] && row[i] < row_count, "sparse_embedding: ids has ", row[i], " but must have ids from 0 to ",
        row_count - 1, ", the rows of weight");
  }
  const at::Tensor entries = values.contiguous();
  const SparseMatrix weight = sparse_of(row_count, width, entries, columns, order, counts, starts);
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(width);
  at::Tensor out = at::empty(shape, values.options());
  at::parallel_for(0, rows.numel(), grain_of_rows(width), [&](int64_t begin, int64_t end) {
    sparse_embedding_kernel(row, weight, out.mutable_data_ptr(), begin, end);
  });
  return out;
}

at::Tensor sparse_embedding_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& ids, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t row_count, std::optional<int64_t> padding_idx) {
  const at::Tensor rows = ids.to(at::kLong).contiguous(), grads = grad_output.contiguous();
  const int64_t width = grads.size(-1);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  at::Tensor grad_values = at::zeros(columns.sizes(), grads.options());
  const SparseMatrix pattern = sparse_of(row_count, width, grad_values, columns, order, counts, starts);
  const Matrix matrix{grads.const_data_ptr(), type_of(grads), rows.numel(), width};

  // Sorted by row, as in masked_embedding_backward_cpu: the same bits at any number of threads.
  std::vector<int64_t> lookups(rows.numel());
  std::iota(lookups.begin(), lookups.end(), 0);
  std::stable_sort(lookups.begin(), lookups.end(), [row](int64_t a, int64_t b) { return row[a] < row[b]; });
  std::vector<int64_t> begins;  // of each row's look-ups
  for (size_t i = 0; i < lookups.size(); ++i) {
    if (i == 0 || row[lookups[i]] != row[lookups[i - 1]]) begins.push_back(static_cast<int64_t>(i));
  }
  const auto distinct = static_cast<int64_t>(begins.size());
  begins.push_back(rows.numel());
  at::parallel_for(0, distinct, grain_of_rows(width), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t* of_row = lookups.data() + begins[i];
      if (padding_idx == row[*of_row]) continue;
      sparse_embedding_backward_kernel(
          matrix, of_row, begins[i + 1] - begins[i], pattern, row[*of_row], grad_values.mutable_data_ptr());
    }
  });
  return grad_values;
}

}  // namespace tamt
