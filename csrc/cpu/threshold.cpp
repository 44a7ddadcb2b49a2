#include <ATen/Parallel.h>

#include <atomic>
#include <vector>

#include "../operations.h"
#include "kernels.h"

namespace tamt {
namespace {

// Tasks are handed out one by one: pieces take unequal time, and other processes may slow a thread down.
void parallel(int64_t count, const std::function<void(int64_t)>& task) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> topk_threshold_cpu(
    const std::vector<at::Tensor>& scores, at::IntArrayRef keep, bool absolute) {
  const auto count = static_cast<int64_t>(scores.size());
  std::vector<at::Tensor> contiguous;
  std::vector<ScoreMatrix> matrices;
  for (int64_t m = 0; m < count; ++m) {
    contiguous.push_back(scores[m].to(at::kFloat).contiguous());
    matrices.push_back({contiguous[m].const_data_ptr<float>(), contiguous[m].numel(), keep[m]});
  }
  std::vector<Threshold> thresholds(count);
  topk_threshold_kernel(matrices.data(), count, absolute, thresholds.data(), parallel);

  at::Tensor values = scores[0].new_empty({count}, at::kFloat), cuts = scores[0].new_empty({count}, at::kLong);
  for (int64_t m = 0; m < count; ++m) {
    TORCH_CHECK_VALUE(
        !thresholds[m].has_nan, "topk_threshold: scores[", m,
        "] has NaN entries; a score must be a number or infinite");
    values.mutable_data_ptr<float>()[m] = thresholds[m].value;
    cuts.mutable_data_ptr<int64_t>()[m] = thresholds[m].cut;
  }
  return {values, cuts};
}

}  // namespace tamt
