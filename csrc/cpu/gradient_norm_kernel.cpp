#include <algorithm>
#include <cmath>
#include <vector>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {
namespace {

// Entries per block. Each block has a sum, and the sums are added in order, so that the result does not depend on the
// threads.
constexpr int64_t kBlock = 32768;
constexpr int64_t kLanes = 16;

template <typename Grad, typename Weight>
double sum_of_squares(const Grad* grad, const Weight* weight, int64_t size) {
  double total = 0;
  vectorised([=, &total]() TAMT_INLINE {
    double sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const double product = to_float(grad[i + lane]) * to_float(weight[i + lane]);
        sums[lane] += product * product;
      }
    }
    for (; i < size; ++i) {
      const double product = to_float(grad[i]) * to_float(weight[i]);
      sums[0] += product * product;
    }
    for (const double sum : sums) total += sum;
  });
  return total;
}

}  // namespace

float gradient_norm_kernel(const GradientMatrix* matrices, int64_t count, const Parallel& parallel) {
  struct Block {
    const GradientMatrix* matrix;
    int64_t begin, end;
    double sum;
  };
  std::vector<Block> blocks;
  for (const GradientMatrix* matrix = matrices; matrix < matrices + count; ++matrix) {
    for (int64_t begin = 0; begin < matrix->size; begin += kBlock) {
      blocks.push_back({matrix, begin, std::min(begin + kBlock, matrix->size), 0});
    }
  }
  parallel(static_cast<int64_t>(blocks.size()), [&](int64_t b) {
    Block& block = blocks[b];
    with_type(block.matrix->grad_type, [&](auto grad_element) {
      with_type(block.matrix->weight_type, [&](auto weight_element) {
        block.sum = sum_of_squares(
            static_cast<const decltype(grad_element)*>(block.matrix->grad) + block.begin,
            static_cast<const decltype(weight_element)*>(block.matrix->weight) + block.begin,
            block.end - block.begin);
      });
    });
  });
  double total = 0;
  for (const Block& block : blocks) total += block.sum;
  return static_cast<float>(std::sqrt(total));
}

}  // namespace tamt
