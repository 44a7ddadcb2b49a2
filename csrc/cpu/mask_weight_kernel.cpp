#include <algorithm>
#include <cmath>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {
namespace {

template <typename Weight, typename Out, bool absolute>
void mask_weight(
    const Weight* __restrict__ weight, const float* __restrict__ score, float value, int64_t cut,
    Out* __restrict__ out, int64_t begin, int64_t end) {
  // Ties are kept before the cut and pruned after it: two loops with one comparison each. All weights are read, kept or
  // not, because a branch would be mispredicted for every third entry and take 4 times as long. Stores go through the
  // cache, because the product that follows reads the result.
  const int64_t middle = std::clamp(cut, begin, end);
  vectorised([=]() TAMT_INLINE {
    for (int64_t i = begin; i < middle; ++i) {
      const float rank = absolute ? std::fabs(score[i]) : score[i];
      out[i] = keep_if(rank >= value, convert<Out>(weight[i]));
    }
    for (int64_t i = middle; i < end; ++i) {
      const float rank = absolute ? std::fabs(score[i]) : score[i];
      out[i] = keep_if(rank > value, convert<Out>(weight[i]));
    }
  });
}

}  // namespace

void mask_weight_kernel(
    const void* weight, Type weight_type, const float* score, float value, int64_t cut, bool absolute, void* out,
    Type out_type, int64_t begin, int64_t end) {
  with_type(weight_type, [=](auto weight_element) {
    with_type(out_type, [=](auto out_element) {
      using Weight = decltype(weight_element);
      using Out = decltype(out_element);
      auto* kernel = absolute ? &mask_weight<Weight, Out, true> : &mask_weight<Weight, Out, false>;
      kernel(static_cast<const Weight*>(weight), score, value, cut, static_cast<Out*>(out), begin, end);
    });
  });
}

}  // namespace tamt
