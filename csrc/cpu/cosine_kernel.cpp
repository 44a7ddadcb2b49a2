#include <algorithm>
#include <cmath>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {
namespace {

constexpr int64_t kLanes = 16;
constexpr float kSmallestNorm = 1e-8f;  // SMALLEST_NORM of the definition

// With a fixed number of partial sums, so that the order is the same for every instruction set.
template <typename A, typename B>
TAMT_INLINE inline float dot(const A* a, const B* b, int64_t size) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += to_float(a[i + lane]) * to_float(b[i + lane]);
  }
  for (; i < size; ++i) sums[0] += to_float(a[i]) * to_float(b[i]);
  float total = 0;
  for (const float sum : sums) total += sum;
  return total;
}

// The sums that the cosine of two rows and its gradient need. Rows are read three times, twice from the L1 cache.
struct Row {
  float product, norm, trained_norm, trained_squares;
};

template <typename Constant, typename Trained>
TAMT_INLINE inline Row row_of(const Constant* constant, const Trained* trained, int64_t columns) {
  const float squares = dot(constant, constant, columns), trained_squares = dot(trained, trained, columns);
  const auto norm = [](float square) { return std::max(std::sqrt(square), kSmallestNorm); };
  return {dot(constant, trained, columns), norm(squares), norm(trained_squares), trained_squares};
}

// Calls `visit` with pointers of the C++ types.
template <typename Visit>
void with_types(const void* constant, Type constant_type, const void* trained, Type trained_type, const Visit& visit) {
  with_type(constant_type, [&](auto constant_element) {
    with_type(trained_type, [&](auto trained_element) {
      visit(
          static_cast<const decltype(constant_element)*>(constant),
          static_cast<const decltype(trained_element)*>(trained));
    });
  });
}

}  // namespace

void cosine_kernel(
    const void* constant, Type constant_type, const void* trained, Type trained_type, float* cosine, int64_t columns,
    int64_t begin, int64_t end) {
  with_types(constant, constant_type, trained, trained_type, [=](const auto* c, const auto* t) {
    vectorised([=]() TAMT_INLINE {
      for (int64_t row = begin; row < end; ++row) {
        const Row of_row = row_of(c + row * columns, t + row * columns, columns);
        cosine[row] = of_row.product / (of_row.norm * of_row.trained_norm);
      }
    });
  });
}

void cosine_backward_kernel(
    const float* grad_cosine, const void* constant, Type constant_type, const void* trained, Type trained_type,
    void* grad, int64_t columns, int64_t begin, int64_t end) {
  with_types(constant, constant_type, trained, trained_type, [=](const auto* c, const auto* t) {
    using Trained = std::decay_t<decltype(*t)>;
    auto* g = static_cast<Trained*>(grad);
    vectorised([=]() TAMT_INLINE {
      for (int64_t row = begin; row < end; ++row) {
        const Row of_row = row_of(c + row * columns, t + row * columns, columns);
        const float towards = grad_cosine[row] / (of_row.norm * of_row.trained_norm);
        const float along =
            of_row.trained_norm > kSmallestNorm ? towards * of_row.product / of_row.trained_squares : 0.0f;
        for (int64_t i = row * columns; i < (row + 1) * columns; ++i) {
          g[i] = from_float<Trained>(towards * to_float(c[i]) - along * to_float(t[i]));
        }
      }
    });
  });
}

}  // namespace tamt
