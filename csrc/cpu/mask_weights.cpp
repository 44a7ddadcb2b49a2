#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../operations.h"
#include "kernels.h"

namespace tamt {
namespace {

struct Piece {
  size_t matrix;
  int64_t begin, end;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> mask_weights_cpu(
    const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& scores, const at::Tensor& values,
    const at::Tensor& cuts, at::ScalarType dtype, bool pack, bool absolute) {
  std::vector<at::Tensor> w, s;
  std::vector<int64_t> offsets;
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (size_t m = 0; m < weights.size(); ++m) {
    w.push_back(weights[m].contiguous());
    s.push_back(scores[m].to(at::kFloat).contiguous());
    offsets.push_back(total);
    const int64_t size = w[m].numel();
    for (int64_t begin = 0; begin < size; begin += kGrain) pieces.push_back({m, begin, std::min(begin + kGrain, size)});
    total += padded(size);
  }
  at::Tensor masked = values.new_empty({total}, dtype);
  at::Tensor bits = values.new_empty({pack ? total / 8 : 0}, at::kByte);
  const at::Tensor value = values.contiguous(), cut = cuts.contiguous();
  char* out = static_cast<char*>(masked.mutable_data_ptr());
  uint8_t* packed = bits.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto& [m, begin, end] = pieces[i];
      const int64_t padding = end == w[m].numel() ? padded(end) - end : 0;
      const auto* score = s[m].const_data_ptr<float>();
      const float threshold = value.const_data_ptr<float>()[m];
      const int64_t tie_cut = cut.const_data_ptr<int64_t>()[m];
      char* of_matrix = out + offsets[m] * masked.element_size();
      mask_weight_kernel(
          w[m].const_data_ptr(), type_of(w[m]), score, threshold, tie_cut, absolute, of_matrix, type_of(masked), begin,
          end);
      std::memset(of_matrix + end * masked.element_size(), 0, padding * masked.element_size());
      if (!pack) continue;
      uint8_t* of_mask = packed + offsets[m] / 8;
      pack_kept_kernel(score, threshold, tie_cut, absolute, of_mask, begin, end);
      std::memset(of_mask + (end + 7) / 8, 0, (end + padding) / 8 - (end + 7) / 8);
    }
  });
  return {masked, bits};
}

}  // namespace tamt
