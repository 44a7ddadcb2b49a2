#include <ATen/Parallel.h>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

at::Tensor mask_weight_cpu(
    const at::Tensor& weight, const at::Tensor& score, const at::Tensor& value, const at::Tensor& cut,
    std::optional<at::ScalarType> dtype, bool absolute) {
  const at::Tensor w = weight.contiguous(), s = score.to(at::kFloat).contiguous();
  at::Tensor out = weight.new_empty(weight.sizes(), dtype.value_or(weight.scalar_type()));
  const float threshold = value.item<float>();
  const int64_t tie_cut = cut.item<int64_t>();
  at::parallel_for(0, w.numel(), kGrain, [&](int64_t begin, int64_t end) {
    mask_weight_kernel(
        w.const_data_ptr(), type_of(w), s.const_data_ptr<float>(), threshold, tie_cut, absolute, out.data_ptr(),
        type_of(out), begin, end);
  });
  return out;
}

}  // namespace tamt
