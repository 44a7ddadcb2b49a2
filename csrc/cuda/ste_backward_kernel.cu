// The straight-through gradient, dS = d(W ⊙ m) ⊙ W. Free of torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "ste_backward_kernel.h"

namespace tamt {
namespace {

__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }
__device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename To>
__device__ To from_float(float value);
template <>
__device__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Eight entries a thread: one 16-byte access for a half type, two for float.
constexpr int kEntries = 8;
constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;

template <typename T>
struct alignas(16) Entries {
  T each[kEntries];
};

template <typename Grad, typename Weight, typename Out>
__global__ void __launch_bounds__(kThreads) ste_backward(
    const Grad* __restrict__ grad, const Weight* __restrict__ weight, Out* __restrict__ out, int64_t size,
    int64_t vectors) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = thread; i < vectors; i += threads) {
    const auto g = reinterpret_cast<const Entries<Grad>*>(grad)[i];
    const auto w = reinterpret_cast<const Entries<Weight>*>(weight)[i];
    Entries<Out> product;
#pragma unroll
    for (int j = 0; j < kEntries; ++j) product.each[j] = from_float<Out>(to_float(g.each[j]) * to_float(w.each[j]));
    reinterpret_cast<Entries<Out>*>(out)[i] = product;
  }
  for (int64_t i = vectors * kEntries + thread; i < size; i += threads) {
    out[i] = from_float<Out>(to_float(grad[i]) * to_float(weight[i]));
  }
}

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
    int64_t size, int multiprocessors, CUstream_st* stream) {
  if (size == 0) return cudaSuccess;
  // A view into the middle of a storage need not be aligned; it is then taken entry by entry.
  const bool vectorised = aligned(grad_masked_weight) && aligned(weight) && aligned(out);
  const int64_t vectors = vectorised ? size / kEntries : 0;
  const int64_t items = vectorised ? vectors + size % kEntries : size;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(
      (items + kThreads - 1) / kThreads, int64_t{multiprocessors} * kBlocksPerMultiprocessor));
  with_type(grad_type, [=](auto grad_entry) {
    with_type(weight_type, [=](auto weight_entry) {
      with_type(out_type, [=](auto out_entry) {
        using Grad = decltype(grad_entry);
        using Weight = decltype(weight_entry);
        using Out = decltype(out_entry);
        ste_backward<Grad, Weight, Out><<<blocks, kThreads, 0, stream>>>(
            static_cast<const Grad*>(grad_masked_weight), static_cast<const Weight*>(weight), static_cast<Out*>(out),
            size, vectors);
      });
    });
  });
  return cudaGetLastError();
}

}  // namespace tamt
