#include <ATen/Parallel.h>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

at::Tensor pack_mask_cpu(const at::Tensor& mask) {
  const at::Tensor entries = mask.contiguous();
  at::Tensor packed = mask.new_empty({(mask.numel() + 7) / 8}, at::kByte);
  at::parallel_for(0, packed.numel(), kGrain, [&](int64_t begin, int64_t end) {
    pack_mask_kernel(
        entries.const_data_ptr<bool>(), entries.numel(), packed.mutable_data_ptr<uint8_t>(), begin, end);
  });
  return packed;
}

at::Tensor unpack_mask_cpu(const at::Tensor& packed, at::IntArrayRef shape) {
  const at::Tensor bytes = packed.contiguous();
  at::Tensor mask = packed.new_empty(shape, at::kBool);
  at::parallel_for(0, bytes.numel(), kGrain, [&](int64_t begin, int64_t end) {
    unpack_mask_kernel(
        bytes.const_data_ptr<uint8_t>(), mask.mutable_data_ptr<bool>(), mask.numel(), begin, end);
  });
  return mask;
}

}  // namespace tamt
