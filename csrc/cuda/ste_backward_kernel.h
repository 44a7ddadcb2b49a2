// Does not use torch.
#pragma once

#include <cstdint>

#include "../types.h"

struct CUstream_st;

namespace tamt {

// out = grad_masked_weight ⊙ weight, or out += that with `add`, on `stream`, in at most `max_blocks` blocks. If
// `squares` is not null it must have room for `max_blocks` numbers, and `sum_of_squares` gets the sum of the squares of
// out, unless size is 0. Returns the cudaError_t of the launches, 0 for success.
int ste_backward_kernel_cuda(
    const void* grad_masked_weight, Type grad_type, const void* weight, Type weight_type, void* out, Type out_type,
    int64_t size, bool add, double* squares, float* sum_of_squares, int max_blocks, CUstream_st* stream);

}  // namespace tamt
