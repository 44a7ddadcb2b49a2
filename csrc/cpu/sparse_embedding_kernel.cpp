#include <algorithm>
#include <vector>

#include "convert.h"
#include "kernels.h"

namespace tamt {
namespace {

template <typename Value>
void expand(const int64_t* ids, const SparseMatrix& weight, Value* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Value* to = out + i * weight.columns;
    std::fill(to, to + weight.columns, Value{});
    for (int64_t block = 0; block < weight.blocks(); ++block) {
      const auto [first, count] = weight.find(ids[i], block);
      for (int64_t entry = first; entry < first + count; ++entry) {
        to[block * kCell + weight.column[entry]] = static_cast<const Value*>(weight.values)[entry];
      }
    }
  }
}

template <typename Element>
void sum_kept(
    const Matrix& grad_output, const int64_t* lookups, int64_t count, const SparseMatrix& pattern, int64_t row,
    Element* grad_values) {
  std::vector<float> sums(grad_output.columns);
  for (int64_t i = 0; i < count; ++i) {
    const auto* grad = static_cast<const Element*>(grad_output.data) + lookups[i] * grad_output.columns;
    for (int64_t column = 0; column < grad_output.columns; ++column) sums[column] += to_float(grad[column]);
  }
  for (int64_t block = 0; block < pattern.blocks(); ++block) {
    const auto [first, kept] = pattern.find(row, block);
    for (int64_t entry = first; entry < first + kept; ++entry) {
      grad_values[entry] = from_float<Element>(sums[block * kCell + pattern.column[entry]]);
    }
  }
}

}  // namespace

void sparse_embedding_backward_kernel(
    const Matrix& grad_output, const int64_t* lookups, int64_t count, const SparseMatrix& pattern, int64_t row,
    void* grad_values) {
  with_type(grad_output.type, [&](auto element) {
    sum_kept(grad_output, lookups, count, pattern, row, static_cast<decltype(element)*>(grad_values));
  });
}

void sparse_embedding_kernel(const int64_t* ids, const SparseMatrix& weight, void* out, int64_t begin, int64_t end) {
  with_type(weight.type, [=](auto value) {
    using Value = decltype(value);
    expand(ids, weight, static_cast<Value*>(out), begin, end);
  });
}

}  // namespace tamt
