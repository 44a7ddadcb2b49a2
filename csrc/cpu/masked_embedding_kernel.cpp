#include <vector>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {

void masked_embedding_backward_kernel(
    const void* grad_output, Type grad_type, const int64_t* lookups, int64_t count, const void* weight_row,
    Type weight_type, void* out_row, Type out_type, int64_t columns) {
  std::vector<float> row_sum(columns);
  float* sum = row_sum.data();
  with_type(grad_type, [=](auto grad_element) {
    for (int64_t i = 0; i < count; ++i) {
      const auto* g = static_cast<const decltype(grad_element)*>(grad_output) + lookups[i] * columns;
      vectorised([=]() TAMT_INLINE {
        for (int64_t column = 0; column < columns; ++column) sum[column] += to_float(g[column]);
      });
    }
  });
  ste_backward_kernel(sum, Type::kFloat, weight_row, weight_type, out_row, out_type, 0, columns, {});
}

}  // namespace tamt
