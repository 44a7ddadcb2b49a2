// The tensors of a sparse weight as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include "../operations.h"
#include "sparse_matrix.h"

namespace tamt {

inline SparseMatrix sparse_of(
    int64_t features, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& counts,
    const at::Tensor& starts, const at::Tensor& order) {
  for (const at::Tensor* tensor : {&values, &columns, &counts, &starts, &order}) {
    TORCH_CHECK(tensor->is_contiguous(), "tamt_kernels: the tensors of a sparse weight must be contiguous");
  }
  return {
      counts.size(0), features, values.const_data_ptr(), type_of(values), columns.const_data_ptr<uint8_t>(),
      counts.const_data_ptr<uint8_t>(), starts.const_data_ptr<int64_t>(), order.const_data_ptr<uint8_t>()};
}

}  // namespace tamt
