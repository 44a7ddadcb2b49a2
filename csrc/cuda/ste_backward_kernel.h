// Free of torch.
#pragma once

#include <cstdint>

#include "../types.h"

struct CUstream_st;

namespace tamt {

// out = grad_masked_weight ⊙ weight, or with `add` out += that, on `stream`, in at most `most_blocks` blocks. Unless
// `squares` is null, which has room for as many numbers, the sum of the squares of out goes to `sum_of_squares`, where
// there are entries at all. Returns the cudaError_t of the launches, 0 for success.
int ste_backward_kernel_cuda(
    const void* grad_masked_weight, Type grad_type, const void* weight, Type weight_type, void* out, Type out_type,
    int64_t size, bool add, double* squares, float* sum_of_squares, int most_blocks, CUstream_st* stream);

}  // namespace tamt
