#include <ATen/Parallel.h>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

at::Tensor binarize_cpu(const at::Tensor& score, const at::Tensor& value, const at::Tensor& cut, bool absolute) {
  const at::Tensor s = score.to(at::kFloat).contiguous();
  at::Tensor mask = score.new_empty(score.sizes(), at::kBool);
  const float threshold = value.item<float>();
  const int64_t tie_cut = cut.item<int64_t>();
  at::parallel_for(0, s.numel(), kGrain, [&](int64_t begin, int64_t end) {
    binarize_kernel(
        s.const_data_ptr<float>(), threshold, tie_cut, absolute, mask.mutable_data_ptr<bool>(), begin, end);
  });
  return mask;
}

}  // namespace tamt
