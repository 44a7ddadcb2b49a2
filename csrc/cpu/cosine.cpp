#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

at::Tensor cosine_cpu(const at::Tensor& constant, const at::Tensor& trained) {
  const at::Tensor c = constant.contiguous(), t = trained.contiguous();
  const int64_t columns = t.size(-1);
  at::Tensor cosine = at::empty(t.sizes().slice(0, t.dim() - 1), t.options().dtype(at::kFloat));
  at::parallel_for(0, cosine.numel(), grain_of_rows(columns), [&](int64_t begin, int64_t end) {
    cosine_kernel(
        c.const_data_ptr(), type_of(c), t.const_data_ptr(), type_of(t), cosine.mutable_data_ptr<float>(), columns,
        begin, end);
  });
  return cosine;
}

at::Tensor cosine_backward_cpu(const at::Tensor& grad_cosine, const at::Tensor& constant, const at::Tensor& trained) {
  const at::Tensor g = grad_cosine.contiguous(), c = constant.contiguous(), t = trained.contiguous();
  const int64_t columns = t.size(-1);
  at::Tensor grad = at::empty(t.sizes(), t.options());
  at::parallel_for(0, g.numel(), grain_of_rows(columns), [&](int64_t begin, int64_t end) {
    cosine_backward_kernel(
        g.const_data_ptr<float>(), c.const_data_ptr(), type_of(c), t.const_data_ptr(), type_of(t),
        grad.mutable_data_ptr(), columns, begin, end);
  });
  return grad;
}

}  // namespace tamt
