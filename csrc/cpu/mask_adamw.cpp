#include <vector>

#include "../operations.h"
#include "adamw_matrices.h"
#include "kernels.h"
#include "parallel.h"

namespace tamt {

void mask_adamw_cpu(
    const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights,
    const std::vector<at::Tensor>& scores, const std::vector<at::Tensor>& means,
    const std::vector<at::Tensor>& squares, const std::vector<at::Tensor>& masked, const at::Tensor& values,
    const at::Tensor& cuts, at::IntArrayRef keep, const at::Tensor& rates, double beta1, double beta2, double eps,
    bool renew, bool absolute, const std::optional<c10::List<at::Tensor>>& grad_rows) {
  Contiguous contiguous;
  const float* rate = contiguous.read(rates).const_data_ptr<float>();
  float* value = contiguous.write_floats(values, "values");
  int64_t* cut = contiguous.write(cuts).mutable_data_ptr<int64_t>();
  std::vector<AdamWMatrix> matrices =
      adamw_matrices(contiguous, grads, weights, scores, means, squares, masked, grad_rows);
  std::vector<Threshold> thresholds;
  for (size_t m = 0; m < matrices.size(); ++m) {
    matrices[m].keep = keep[m];
    thresholds.push_back({value[m], cut[m], false});
  }
  mask_adamw_kernel(
      matrices.data(), static_cast<int64_t>(matrices.size()),
      {rate[0], rate[1], rate[2], rate[3], beta1, beta2, eps}, renew, absolute, thresholds.data(), take_roots,
      parallel);
  for (size_t m = 0; renew && m < thresholds.size(); ++m) {
    value[m] = thresholds[m].value;
    cut[m] = thresholds[m].cut;
  }
  contiguous.copy_back();
}

}  // namespace tamt
