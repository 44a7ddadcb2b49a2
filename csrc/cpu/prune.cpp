#include <ATen/Parallel.h>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

void prune_cpu(at::Tensor& tensor, const at::Tensor& packed) {
  at::Tensor entries = tensor.contiguous();
  const at::Tensor bytes = packed.contiguous();
  at::parallel_for(0, bytes.numel(), kGrain / 8, [&](int64_t begin, int64_t end) {
    prune_kernel(
        entries.mutable_data_ptr(), type_of(entries), bytes.const_data_ptr<uint8_t>(), entries.numel(), begin, end);
  });
  if (!entries.is_same(tensor)) tensor.copy_(entries);
}

}  // namespace tamt
