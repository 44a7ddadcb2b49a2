#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../operations.h"
#include "ste_backward_kernel.h"

namespace tamt {

at::Tensor ste_backward_cuda(
    const at::Tensor& grad_masked_weight, const at::Tensor& weight, std::optional<at::ScalarType> dtype) {
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::Tensor g = grad_masked_weight.contiguous(), w = weight.contiguous();
  const at::ScalarType out_dtype = dtype.value_or(at::promoteTypes(g.scalar_type(), w.scalar_type()));
  at::Tensor out = weight.new_empty(weight.sizes(), out_dtype);
  int multiprocessors = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, weight.device().index()));
  const int error = ste_backward_kernel_cuda(
      g.const_data_ptr(), type_of(g), w.const_data_ptr(), type_of(w), out.mutable_data_ptr(), type_of(out),
      w.numel(), multiprocessors, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(error));
  return out;
}

}  // namespace tamt
