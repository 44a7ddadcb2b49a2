#include <algorithm>
#include <cmath>

#include "instruction_set.h"
#include "kernels.h"

namespace tamt {

void binarize_kernel(
    const float* score, float value, int64_t cut, bool absolute, bool* mask, int64_t begin, int64_t end) {
  const int64_t middle = std::clamp(cut, begin, end);
  vectorised([=]() TAMT_INLINE {
    for (int64_t i = begin; i < middle; ++i) mask[i] = (absolute ? std::fabs(score[i]) : score[i]) >= value;
    for (int64_t i = middle; i < end; ++i) mask[i] = (absolute ? std::fabs(score[i]) : score[i]) > value;
  });
}

}  // namespace tamt
