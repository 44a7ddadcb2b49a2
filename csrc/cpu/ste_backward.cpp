#include <ATen/Parallel.h>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

at::Tensor ste_backward_cpu(
    const at::Tensor& grad_masked_weight, const at::Tensor& weight, std::optional<at::ScalarType> dtype) {
  const at::Tensor g = grad_masked_weight.contiguous(), w = weight.contiguous();
  const at::ScalarType out_dtype = dtype.value_or(at::promoteTypes(g.scalar_type(), w.scalar_type()));
  at::Tensor out = weight.new_empty(weight.sizes(), out_dtype);
  at::parallel_for(0, w.numel(), kGrain, [&](int64_t begin, int64_t end) {
    ste_backward_kernel(
        g.const_data_ptr(), type_of(g), w.const_data_ptr(), type_of(w), out.mutable_data_ptr(), type_of(out), begin,
        end);
  });
  return out;
}

}  // namespace tamt
