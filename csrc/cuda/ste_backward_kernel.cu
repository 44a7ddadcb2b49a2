// Starts the kernels of ste_backward_device.cuh. Does not use torch.
#include "ste_backward_kernel.h"

#include <algorithm>

#include "ste_backward_device.cuh"

namespace tamt {
namespace {

template <typename Visit>
void with_type(Type type, const Visit& visit) {
  switch (type) {
    case Type::kFloat:
      return visit(float{});
    case Type::kHalf:
      return visit(__half{});
    case Type::kBFloat16:
      return visit(__nv_bfloat16{});
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

int ste_backward_kernel_cuda(
    const void* grad_masked_weight, Type grad_type, const void* weight, Type weight_type, void* out, Type out_type,
    int64_t size, bool add, double* squares, float* sum_of_squares, int max_blocks, CUstream_st* stream) {
  if (size == 0) return cudaSuccess;
  // A view into the middle of a storage may not be aligned. It is then read entry by entry.
  const bool vectorised = aligned(grad_masked_weight) && aligned(weight) && aligned(out);
  const int64_t vectors = vectorised ? size / kEntries : 0;
  const int64_t items = vectorised ? vectors + size % kEntries : size;
  const auto blocks = static_cast<int>(std::min<int64_t>((items + kThreads - 1) / kThreads, max_blocks));
  with_type(grad_type, [=](auto grad_entry) {
    with_type(weight_type, [=](auto weight_entry) {
      with_type(out_type, [=](auto out_entry) {
        using Grad = decltype(grad_entry);
        using Weight = decltype(weight_entry);
        using Out = decltype(out_entry);
        ste_backward<Grad, Weight, Out><<<blocks, kThreads, 0, stream>>>(
            static_cast<const Grad*>(grad_masked_weight), static_cast<const Weight*>(weight), static_cast<Out*>(out),
            size, vectors, add, squares);
      });
    });
  });
  if (squares) sum_up<<<1, kThreads, 0, stream>>>(squares, blocks, sum_of_squares);
  return cudaGetLastError();
}

}  // namespace tamt
