#include <ATen/Parallel.h>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

void prune_cpu(const std::vector<at::Tensor>& tensors, const std::vector<at::Tensor>& packed) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor entries = tensors[i].contiguous(), bytes = packed[i].contiguous();
    void* const data = entries.mutable_data_ptr();  // before the loop, because a copy-on-write tensor is copied here
    at::parallel_for(0, bytes.numel(), kGrain / 8, [&](int64_t begin, int64_t end) {
      prune_kernel(
          data, type_of(entries), bytes.const_data_ptr<uint8_t>(), entries.numel(), begin, end);
    });
    if (!entries.is_same(tensors[i])) tensors[i].copy_(entries);
  }
}

}  // namespace tamt
