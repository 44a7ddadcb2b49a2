#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../operations.h"
#include "ste_backward_kernel.h"

namespace tamt {
namespace {

constexpr int kBlocksPerMultiprocessor = 8;

// Writes to `out`, which must be contiguous. Returns the sum of its squares if `square`, else an empty tensor.
at::Tensor multiply(const at::Tensor& grad, const at::Tensor& weight, at::Tensor& out, bool add, bool square) {
  const at::Tensor g = grad.contiguous(), w = weight.contiguous();
  int multiprocessors = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, weight.device().index()));
  const int blocks = multiprocessors * kBlocksPerMultiprocessor;
  at::Tensor squares = weight.new_empty({square ? blocks : 0}, at::kDouble);
  at::Tensor sum = weight.new_zeros(square ? at::IntArrayRef{} : at::IntArrayRef{0}, at::kFloat);
  const int error = ste_backward_kernel_cuda(
      g.const_data_ptr(), type_of(g), w.const_data_ptr(), type_of(w), out.mutable_data_ptr(), type_of(out),
      w.numel(), add, square ? squares.mutable_data_ptr<double>() : nullptr,
      square ? sum.mutable_data_ptr<float>() : nullptr, blocks, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(error));
  return sum;
}

}  // namespace

at::Tensor ste_backward_cuda(
    const at::Tensor& grad_masked_weight, const at::Tensor& weight, std::optional<at::ScalarType> dtype) {
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::ScalarType promoted = at::promoteTypes(grad_masked_weight.scalar_type(), weight.scalar_type());
  at::Tensor out = weight.new_empty(weight.sizes(), dtype.value_or(promoted));
  multiply(grad_masked_weight, weight, out, false, false);
  return out;
}

at::Tensor ste_backward_into_cuda(
    at::Tensor& grad_score, const at::Tensor& grad_masked_weight, const at::Tensor& weight, bool add, bool square) {
  const c10::cuda::CUDAGuard guard(weight.device());
  at::Tensor out = grad_score.contiguous();
  const at::Tensor sum = multiply(grad_masked_weight, weight, out, add, square);
  if (!out.is_same(grad_score)) grad_score.copy_(out);
  return sum;
}

}  // namespace tamt
