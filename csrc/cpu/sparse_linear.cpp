#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <vector>

#include "../operations.h"
#include "kernels.h"
#include "parallel.h"
#include "sparse_of.h"

namespace tamt {
namespace {

// [..., features] as rows.
at::Tensor rows_of(const at::Tensor& x, at::ScalarType dtype) {
  return x.to(dtype).reshape({x.numel() / x.size(-1), x.size(-1)}).contiguous();
}

Matrix matrix_of(const at::Tensor& rows) { return {rows.const_data_ptr(), type_of(rows), rows.size(0), rows.size(1)}; }

at::Tensor product(
    const at::Tensor& x, const SparseMatrix& weight, at::ScalarType dtype, const std::optional<at::Tensor>& bias) {
  const at::Tensor rows = rows_of(x, dtype);
  const std::optional<at::Tensor> added = bias ? std::optional(bias->to(at::kFloat).contiguous()) : std::nullopt;
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.rows;
  at::Tensor y = at::empty(shape, x.options().dtype(x.scalar_type() == dtype ? dtype : at::kFloat));
  if (y.numel() > 0) {
    sparse_linear_kernel(
        matrix_of(rows), weight, added ? added->const_data_ptr<float>() : nullptr, y.mutable_data_ptr(), type_of(y),
        parallel, at::get_num_threads());
  }
  return y.to(x.scalar_type());
}

}  // namespace

at::Tensor sparse_linear_cpu(
    const at::Tensor& x, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t rows,
    const std::optional<at::Tensor>& bias) {
  const at::Tensor entries = values.contiguous();  // a gradient may be expanded
  return product(x, sparse_of(rows, x.size(-1), entries, columns, order, counts, starts), values.scalar_type(), bias);
}

at::Tensor sparse_linear_backward_x_cpu(
    const at::Tensor& grad_output, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t width) {
  const at::Tensor entries = values.contiguous();
  // Made anew each time: at 2,048 tokens that takes a twentieth of the product, and no memory between steps.
  const OwnSparseMatrix weight = transposed(sparse_of(grad_output.size(-1), width, entries, columns, order, counts, starts), parallel);
  return product(grad_output, weight.view(), values.scalar_type(), std::nullopt);
}

at::Tensor sparse_linear_backward_values_cpu(
    const at::Tensor& grad_output, const at::Tensor& x, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, at::ScalarType dtype) {
  const at::Tensor grads = rows_of(grad_output, at::kFloat), inputs = rows_of(x, at::kFloat);
  at::Tensor grad_values = at::zeros(columns.sizes(), grads.options());
  if (grads.size(0) > 0) {
    sparse_linear_backward_values_kernel(
        matrix_of(grads), matrix_of(inputs), sparse_of(grads.size(1), inputs.size(1), grad_values, columns, order, counts, starts),
        grad_values.mutable_data_ptr<float>(), parallel);
  }
  return grad_values.to(dtype);
}

}  // namespace tamt
