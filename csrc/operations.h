// The launchers. They take checked tensors from torch's dispatcher, allocate outputs and start kernels.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "types.h"

namespace tamt {

// The smallest number of entries that is worth a thread, as in torch's elementwise operations.
constexpr int64_t kGrain = 32768;

// The same as a number of rows.
inline int64_t grain_of_rows(int64_t columns) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)); }

// A matrix's share of a tensor that holds several matrices, as in group_offsets of tamt_kernels/reference.py.
inline int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }

inline Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Type::kFloat;
    case at::kHalf:
      return Type::kHalf;
    case at::kBFloat16:
      return Type::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "tamt_kernels: dtype ", tensor.scalar_type(), " is not float32, float16 or bfloat16");
  }
}

std::tuple<at::Tensor, at::Tensor> topk_threshold_cpu(
    const std::vector<at::Tensor>& scores, at::IntArrayRef keep, bool absolute);
std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_threshold_unchecked_cpu(
    const std::vector<at::Tensor>& scores, at::IntArrayRef keep, const std::optional<at::Tensor>& last, bool absolute);
at::Tensor gradient_norm_cpu(const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights);
void mask_adamw_cpu(
    const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights,
    const std::vector<at::Tensor>& scores, const std::vector<at::Tensor>& means,
    const std::vector<at::Tensor>& squares, const std::vector<at::Tensor>& masked, const at::Tensor& values,
    const at::Tensor& cuts, at::IntArrayRef keep, const at::Tensor& rates, double beta1, double beta2, double eps,
    bool renew, bool absolute, const std::optional<c10::List<at::Tensor>>& grad_rows);
void pattern_adamw_cpu(
    const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights,
    const std::vector<at::Tensor>& scores, const std::vector<at::Tensor>& means,
    const std::vector<at::Tensor>& squares, const std::vector<at::Tensor>& masked, int64_t n, int64_t m,
    const at::Tensor& rates, double beta1, double beta2, double eps, bool absolute,
    const std::optional<c10::List<at::Tensor>>& grad_rows);
at::Tensor pattern_mask_cpu(const at::Tensor& score, int64_t n, int64_t m, bool absolute);
at::Tensor pattern_weight_cpu(
    const at::Tensor& weight, const at::Tensor& score, int64_t n, int64_t m, std::optional<at::ScalarType> dtype,
    bool absolute);
at::Tensor binarize_cpu(const at::Tensor& score, const at::Tensor& value, const at::Tensor& cut, bool absolute);
at::Tensor pack_mask_cpu(const at::Tensor& mask);
at::Tensor unpack_mask_cpu(const at::Tensor& packed, at::IntArrayRef shape);
void prune_cpu(const std::vector<at::Tensor>& tensors, const std::vector<at::Tensor>& packed);
at::Tensor mask_weight_cpu(
    const at::Tensor& weight, const at::Tensor& score, const at::Tensor& value, const at::Tensor& cut,
    std::optional<at::ScalarType> dtype, bool absolute);
std::tuple<at::Tensor, at::Tensor> mask_weights_cpu(
    const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& scores, const at::Tensor& values,
    const at::Tensor& cuts, at::ScalarType dtype, bool pack, bool absolute);
at::Tensor ste_backward_cpu(
    const at::Tensor& grad_masked_weight, const at::Tensor& weight, std::optional<at::ScalarType> dtype);
at::Tensor ste_backward_all_cpu(
    const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights, at::ScalarType dtype);
at::Tensor ste_backward_into_cpu(
    at::Tensor& grad_score, const at::Tensor& grad_masked_weight, const at::Tensor& weight, bool add, bool square);
at::Tensor masked_embedding_cpu(
    const at::Tensor& ids, const at::Tensor& weight, const at::Tensor& score, const at::Tensor& value,
    const at::Tensor& cut, std::optional<int64_t> padding_idx, bool absolute);
at::Tensor masked_embedding_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& ids, const at::Tensor& weight,
    std::optional<int64_t> padding_idx, at::ScalarType dtype);

at::Tensor cosine_cpu(const at::Tensor& constant, const at::Tensor& trained);
at::Tensor cosine_backward_cpu(const at::Tensor& grad_cosine, const at::Tensor& constant, const at::Tensor& trained);

at::Tensor sparse_linear_cpu(
    const at::Tensor& x, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t rows,
    const std::optional<at::Tensor>& bias);
at::Tensor sparse_linear_backward_x_cpu(
    const at::Tensor& grad_output, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t width);
at::Tensor sparse_linear_backward_values_cpu(
    const at::Tensor& grad_output, const at::Tensor& x, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, at::ScalarType dtype);
at::Tensor sparse_embedding_cpu(
    const at::Tensor& ids, const at::Tensor& values, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t row_count, int64_t width,
    std::optional<int64_t> padding_idx);
at::Tensor sparse_embedding_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& ids, const at::Tensor& columns, const at::Tensor& order,
    const at::Tensor& counts, const at::Tensor& starts, int64_t row_count, std::optional<int64_t> padding_idx);

at::Tensor mask_weight_autograd(
    const at::Tensor& weight, const at::Tensor& score, const at::Tensor& value, const at::Tensor& cut,
    std::optional<at::ScalarType> dtype, bool absolute);
at::Tensor masked_embedding_autograd(
    const at::Tensor& ids, const at::Tensor& weight, const at::Tensor& score, const at::Tensor& value,
    const at::Tensor& cut, std::optional<int64_t> padding_idx, bool absolute);

at::Tensor ste_backward_cuda(
    const at::Tensor& grad_masked_weight, const at::Tensor& weight, std::optional<at::ScalarType> dtype);
at::Tensor ste_backward_into_cuda(
    at::Tensor& grad_score, const at::Tensor& grad_masked_weight, const at::Tensor& weight, bool add, bool square);

}  // namespace tamt
