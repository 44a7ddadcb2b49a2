#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {

void ste_backward_kernel(
    const void* grad_masked_weight, Type grad_type, const void* weight, Type weight_type, void* out, Type out_type,
    int64_t begin, int64_t end) {
  with_type(grad_type, [=](auto grad_element) {
    with_type(weight_type, [=](auto weight_element) {
      with_type(out_type, [=](auto out_element) {
        using Out = decltype(out_element);
        const auto* g = static_cast<const decltype(grad_element)*>(grad_masked_weight);
        const auto* w = static_cast<const decltype(weight_element)*>(weight);
        auto* s = static_cast<Out*>(out);
        vectorised([=]() TAMT_INLINE {
          for (int64_t i = begin; i < end; ++i) s[i] = from_float<Out>(to_float(g[i]) * to_float(w[i]));
        });
      });
    });
  });
}

}  // namespace tamt
