#include <ATen/ops/empty.h>

#include <vector>

#include "../operations.h"
#include "kernels.h"
#include "parallel.h"

namespace tamt {
namespace {

std::vector<Threshold> search(
    const std::vector<at::Tensor>& scores, at::IntArrayRef keep, const float* last, bool absolute) {
  const auto count = static_cast<int64_t>(scores.size());
  std::vector<at::Tensor> contiguous;
  std::vector<ScoreMatrix> matrices;
  for (int64_t m = 0; m < count; ++m) {
    contiguous.push_back(scores[m].to(at::kFloat).contiguous());
    matrices.push_back(
        {contiguous[m].const_data_ptr<float>(), contiguous[m].numel(), keep[m], last ? last[m] : NAN});
  }
  std::vector<Threshold> thresholds(count);
  topk_threshold_kernel(matrices.data(), count, absolute, thresholds.data(), parallel);
  return thresholds;
}

std::tuple<at::Tensor, at::Tensor> values_and_cuts(const std::vector<Threshold>& thresholds) {
  const auto count = static_cast<int64_t>(thresholds.size());
  at::Tensor values = at::empty({count}, at::kFloat), cuts = at::empty({count}, at::kLong);
  for (int64_t m = 0; m < count; ++m) {
    values.mutable_data_ptr<float>()[m] = thresholds[m].value;
    cuts.mutable_data_ptr<int64_t>()[m] = thresholds[m].cut;
  }
  return {values, cuts};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> topk_threshold_cpu(
    const std::vector<at::Tensor>& scores, at::IntArrayRef keep, bool absolute) {
  const std::vector<Threshold> thresholds = search(scores, keep, nullptr, absolute);
  for (size_t m = 0; m < thresholds.size(); ++m) {
    TORCH_CHECK_VALUE(
        !thresholds[m].has_nan, "topk_threshold: scores[", m,
        "] has NaN entries; a score must be a number or infinite");
  }
  return values_and_cuts(thresholds);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_threshold_unchecked_cpu(
    const std::vector<at::Tensor>& scores, at::IntArrayRef keep, const std::optional<at::Tensor>& last,
    bool absolute) {
  const at::Tensor near = last ? last->contiguous() : at::Tensor();
  const std::vector<Threshold> thresholds =
      search(scores, keep, last ? near.const_data_ptr<float>() : nullptr, absolute);
  auto [values, cuts] = values_and_cuts(thresholds);
  at::Tensor has_nan = at::empty({values.numel()}, at::kBool);
  for (size_t m = 0; m < thresholds.size(); ++m) has_nan.mutable_data_ptr<bool>()[m] = thresholds[m].has_nan;
  return {values, cuts, has_nan};
}

}  // namespace tamt
