#include <vector>

#include "../operations.h"
#include "adamw_matrices.h"
#include "kernels.h"
#include "parallel.h"

namespace tamt {

void pattern_adamw_cpu(
    const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights,
    const std::vector<at::Tensor>& scores, const std::vector<at::Tensor>& means,
    const std::vector<at::Tensor>& squares, const std::vector<at::Tensor>& masked, int64_t n, int64_t m,
    const at::Tensor& rates, double beta1, double beta2, double eps, bool absolute,
    const std::optional<c10::List<at::Tensor>>& grad_rows) {
  Contiguous contiguous;
  const float* rate = contiguous.read(rates).const_data_ptr<float>();
  const std::vector<AdamWMatrix> matrices =
      adamw_matrices(contiguous, grads, weights, scores, means, squares, masked, grad_rows);
  pattern_adamw_kernel(
      matrices.data(), static_cast<int64_t>(matrices.size()),
      {rate[0], rate[1], rate[2], rate[3], beta1, beta2, eps}, {n, m}, absolute, take_roots, parallel);
  contiguous.copy_back();
}

}  // namespace tamt
