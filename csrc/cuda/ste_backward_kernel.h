// Free of torch.
#pragma once

#include <cstdint>

#include "../types.h"

struct CUstream_st;

namespace tamt {

// out = grad_masked_weight ⊙ weight on `stream`; returns the cudaError_t of the launch, 0 for success.
int ste_backward_kernel_cuda(
    const void* grad_masked_weight, Type grad_type, const void* weight, Type weight_type, void* out, Type out_type,
    int64_t size, int multiprocessors, CUstream_st* stream);

}  // namespace tamt
