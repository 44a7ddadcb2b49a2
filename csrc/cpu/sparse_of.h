// The tensors of a sparse weight as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include "../operations.h"
#include "sparse_matrix.h"

namespace tamt {

inline SparseMatrix sparse_of(
    int64_t rows, int64_t width, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts) {
  for (const at::Tensor* tensor : {&values, &columns, &order, &counts, &starts}) {
    TORCH_CHECK(tensor->is_contiguous(), "tamt_kernels: the tensors of a sparse weight must be contiguous");
  }
  return {
      rows, width, values.const_data_ptr(), type_of(values), columns.const_data_ptr<uint8_t>(),
      order.const_data_ptr<uint8_t>(), counts.const_data_ptr<uint8_t>(), starts.const_data_ptr<int64_t>()};
}

}  // namespace tamt
