#include <ATen/ops/scalar_tensor.h>

#include <vector>

#include "../operations.h"
#include "kernels.h"
#include "parallel.h"

namespace tamt {

at::Tensor gradient_norm_cpu(const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights) {
  std::vector<at::Tensor> contiguous;  // keeps copies alive
  std::vector<GradientMatrix> matrices;
  for (size_t m = 0; m < grads.size(); ++m) {
    const at::Tensor& g = contiguous.emplace_back(grads[m].contiguous());
    const Type grad_type = type_of(g);
    const void* grad = g.const_data_ptr();
    const at::Tensor& w = contiguous.emplace_back(weights[m].contiguous());
    matrices.push_back({grad, grad_type, w.const_data_ptr(), type_of(w), w.numel()});
  }
  const float norm = gradient_norm_kernel(matrices.data(), static_cast<int64_t>(matrices.size()), parallel);
  return at::scalar_tensor(norm, at::kFloat);
}

}  // namespace tamt
