// The straight-through gradient, dS = d(W ⊙ m) ⊙ W. Only device code, with only CUDA's headers, so that NVRTC compiles
// it too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace tamt {

using Index = long long;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename To>
__device__ To from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Eight entries per thread: one 16-byte access for a half type, two for float.
constexpr int kEntries = 8;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <typename T>
struct alignas(16) Entries {
  T entry[kEntries];
};

// The product, or with `add` the old value plus the product. Not fused, because the definition rounds both.
template <typename Grad, typename Weight, typename Out>
__device__ Out multiply(Grad grad, Weight weight, Out old, bool add) {
  const float product = __fmul_rn(to_float(grad), to_float(weight));
  return from_float<Out>(add ? __fadd_rn(to_float(old), product) : product);
}

template <typename Out>
__device__ double square(Out value) {
  const double entry = to_float(value);
  return entry * entry;
}

// The sum over a block, returned in its first thread.
__device__ inline double block_sum(double value) {
  __shared__ double warps[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kWarps; ++warp) sum += warps[warp];
  }
  return sum;
}

// `squares`, unless it is null, gets the sum of the squares of each block's results.
template <typename Grad, typename Weight, typename Out>
__global__ void __launch_bounds__(kThreads) ste_backward(
    const Grad* __restrict__ grad, const Weight* __restrict__ weight, Out* __restrict__ out, Index size, Index vectors,
    bool add, double* __restrict__ squares) {
  const Index thread = Index{blockIdx.x} * kThreads + threadIdx.x;
  const Index threads = Index{gridDim.x} * kThreads;
  double sum = 0;
  for (Index i = thread; i < vectors; i += threads) {
    const auto g = reinterpret_cast<const Entries<Grad>*>(grad)[i];
    const auto w = reinterpret_cast<const Entries<Weight>*>(weight)[i];
    Entries<Out> result{};
    if (add) result = reinterpret_cast<const Entries<Out>*>(out)[i];
#pragma unroll
    for (int j = 0; j < kEntries; ++j) {
      result.entry[j] = multiply(g.entry[j], w.entry[j], result.entry[j], add);
      if (squares) sum += square(result.entry[j]);
    }
    reinterpret_cast<Entries<Out>*>(out)[i] = result;
  }
  for (Index i = vectors * kEntries + thread; i < size; i += threads) {
    out[i] = multiply(grad[i], weight[i], add ? out[i] : Out{}, add);
    if (squares) sum += square(out[i]);
  }
  if (!squares) return;
  sum = block_sum(sum);
  if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// The sum of `count` numbers in a fixed order, for one block.
static __global__ void __launch_bounds__(kThreads) sum_up(const double* __restrict__ numbers, int count, float* total) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += numbers[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = static_cast<float>(sum);
}

}  // namespace tamt
