// The tensors of a step as the kernels of AdamW take them.
#pragma once

#include <ATen/ops/from_blob.h>
#include <ATen/ops/sqrt_cpu_dispatch.h>

#include <deque>
#include <utility>
#include <vector>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

// Contiguous tensors for the kernel: strided tensors are copied, and copied back if they are written.
class Contiguous {
 public:
  const at::Tensor& read(const at::Tensor& tensor) { return pairs_.emplace_back(tensor.contiguous(), at::Tensor()).first; }

  const at::Tensor& write(const at::Tensor& tensor) { return pairs_.emplace_back(tensor.contiguous(), tensor).first; }

  float* write_floats(const at::Tensor& tensor, const char* name) {
    TORCH_CHECK_TYPE(
        tensor.scalar_type() == at::kFloat, "MaskAdamW: ", name, " has dtype ", tensor.scalar_type(),
        " but must be float32");
    return write(tensor).mutable_data_ptr<float>();
  }

  void copy_back() const {
    for (const auto& [copy, tensor] : pairs_) {
      if (tensor.defined() && !copy.is_same(tensor)) tensor.copy_(copy);
    }
  }

 private:
  std::deque<std::pair<at::Tensor, at::Tensor>> pairs_;  // the copy, and the tensor to copy back to
};

inline void take_roots(float* numbers, int64_t size) {
  at::Tensor tensor = at::from_blob(numbers, {size}, at::kFloat);
  at::cpu::sqrt_out(tensor, tensor);
}

// The matrices without their `keep`. `contiguous` holds what they point to.
inline std::vector<AdamWMatrix> adamw_matrices(
    Contiguous& contiguous, const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights,
    const std::vector<at::Tensor>& scores, const std::vector<at::Tensor>& means,
    const std::vector<at::Tensor>& squares, const std::vector<at::Tensor>& masked,
    const std::optional<c10::List<at::Tensor>>& grad_rows) {
  std::vector<AdamWMatrix> matrices;
  for (size_t m = 0; m < scores.size(); ++m) {
    const at::Tensor &grad = contiguous.read(grads[m]), &weight = contiguous.read(weights[m]);
    const at::Tensor& target = contiguous.write(masked[m]);
    matrices.push_back({
        {grad.const_data_ptr(), type_of(grad), weight.const_data_ptr(), type_of(weight), weight.numel()},
        contiguous.write_floats(scores[m], "scores"),
        contiguous.write_floats(means[m], "means"),
        contiguous.write_floats(squares[m], "squares"),
        target.mutable_data_ptr(),
        type_of(target),
    });
    if (grad_rows && grad_rows->get(m).numel() > 0) {
      matrices.back().columns = weight.size(1);
      matrices.back().grad_rows = contiguous.read(grad_rows->get(m)).const_data_ptr<int32_t>();
    }
  }
  return matrices;
}

}  // namespace tamt
