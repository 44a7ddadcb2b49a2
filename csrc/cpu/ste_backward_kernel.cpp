#include <algorithm>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {
namespace {

template <bool add, typename Grad, typename Weight, typename Out>
void multiply(
    const Grad* __restrict__ grad, const Weight* __restrict__ weight, Out* __restrict__ out, int64_t begin,
    int64_t end) {
  vectorised([=]() TAMT_INLINE {
    for (int64_t i = begin; i < end; ++i) {
      const float product = to_float(grad[i]) * to_float(weight[i]);
      out[i] = from_float<Out>(add ? to_float(out[i]) + product : product);
    }
  });
}

// With a fixed number of partial sums, so that the order is the same for every instruction set.
template <typename Out>
double sum_of_squares(const Out* out, int64_t size) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  vectorised([&sums, out, size]() TAMT_INLINE {
    double lanes[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= size; i += kSums) {
      for (int64_t j = 0; j < kSums; ++j) {
        const double entry = to_float(out[i + j]);
        lanes[j] += entry * entry;
      }
    }
    for (int64_t j = 0; i + j < size; ++j) {
      const double entry = to_float(out[i + j]);
      lanes[j] += entry * entry;
    }
    for (int64_t j = 0; j < kSums; ++j) sums[j] = lanes[j];
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace

double ste_backward_kernel(
    const void* grad_masked_weight, Type grad_type, const void* weight, Type weight_type, void* out, Type out_type,
    int64_t begin, int64_t end, SteOptions options) {
  double squares = 0;
  with_type(grad_type, [&](auto grad_element) {
    with_type(weight_type, [&](auto weight_element) {
      with_type(out_type, [&](auto out_element) {
        const auto* g = static_cast<const decltype(grad_element)*>(grad_masked_weight);
        const auto* w = static_cast<const decltype(weight_element)*>(weight);
        auto* result = static_cast<decltype(out_element)*>(out);
        // Squares are summed in pieces that are still in the L1 cache.
        const int64_t piece = options.square ? 1024 : end - begin;
        for (int64_t first = begin; first < end; first += piece) {
          const int64_t last = std::min(first + piece, end);
          options.add ? multiply<true>(g, w, result, first, last) : multiply<false>(g, w, result, first, last);
          if (options.square) squares += sum_of_squares(result + first, last - first);
        }
      });
    });
  });
  return squares;
}

}  // namespace tamt
