#include <ATen/Parallel.h>

#include <algorithm>

#include "../operations.h"
#include "kernels.h"

namespace tamt {
namespace {

// Runs task(begin, end) for whole groups of entries on torch's threads.
template <typename Task>
void parallel_groups(int64_t size, int64_t group, const Task& task) {
  at::parallel_for(0, size / group, std::max<int64_t>(1, kGrain / group), [&](int64_t begin, int64_t end) {
    task(begin * group, end * group);
  });
}

}  // namespace

at::Tensor pattern_mask_cpu(const at::Tensor& score, int64_t n, int64_t m, bool absolute) {
  const at::Tensor s = score.to(at::kFloat).contiguous();
  at::Tensor mask = score.new_empty(score.sizes(), at::kBool);
  parallel_groups(s.numel(), m, [&](int64_t begin, int64_t end) {
    pattern_mask_kernel(s.const_data_ptr<float>(), {n, m}, absolute, mask.mutable_data_ptr<bool>(), begin, end);
  });
  return mask;
}

at::Tensor pattern_weight_cpu(
    const at::Tensor& weight, const at::Tensor& score, int64_t n, int64_t m, std::optional<at::ScalarType> dtype,
    bool absolute) {
  const at::Tensor w = weight.contiguous(), s = score.to(at::kFloat).contiguous();
  at::Tensor out = weight.new_empty(weight.sizes(), dtype.value_or(weight.scalar_type()));
  parallel_groups(s.numel(), m, [&](int64_t begin, int64_t end) {
    pattern_weight_kernel(
        w.const_data_ptr(), type_of(w), s.const_data_ptr<float>(), {n, m}, absolute, out.mutable_data_ptr(),
        type_of(out), begin, end);
  });
  return out;
}

}  // namespace tamt
