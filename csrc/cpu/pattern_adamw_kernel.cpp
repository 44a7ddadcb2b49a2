// AdamW and masks of n of each m neighbours in one pass over memory. A block's mask follows from its own scores, so
// there is no threshold to search for, and rows of an embedding that never had a gradient are not read.
#include <algorithm>
#include <vector>

#include "adamw.h"
#include "kernels.h"

namespace tamt {
namespace {

struct Piece {
  int64_t matrix, begin, end;
};

std::vector<Piece> pieces_of(const AdamWMatrix* matrices, int64_t count, int64_t group) {
  const int64_t length = (1 << 18) / group * group;
  std::vector<Piece> pieces;
  for (int64_t m = 0; m < count; ++m) {
    const int64_t size = matrices[m].gradient.size;
    for (int64_t begin = 0; begin < size; begin += length) pieces.push_back({m, begin, std::min(begin + length, size)});
  }
  return pieces;
}

void mask(const AdamWMatrix& matrix, Pattern pattern, bool absolute, int64_t begin, int64_t end) {
  if (matrix.masked == nullptr) return;
  if (overwritten(matrix)) {
    return pattern_weight_kernel(
        matrix.gradient.weight, matrix.gradient.weight_type, matrix.score, pattern, absolute, matrix.masked,
        matrix.masked_type, begin, end);
  }
  alignas(kLine) char block[kBlock * sizeof(float)];
  const int64_t weight_size = size_of(matrix.gradient.weight_type), masked_size = size_of(matrix.masked_type);
  const int64_t length = kBlock / pattern.m * pattern.m;
  for (; begin < end; begin += length) {
    const int64_t size = std::min(length, end - begin);
    pattern_weight_kernel(
        static_cast<const char*>(matrix.gradient.weight) + begin * weight_size, matrix.gradient.weight_type,
        matrix.score + begin, pattern, absolute, block, matrix.masked_type, 0, size);
    store_changed(block, static_cast<char*>(matrix.masked) + begin * masked_size, size * masked_size);
  }
}

}  // namespace

void pattern_adamw_kernel(
    const AdamWMatrix* matrices, int64_t count, const AdamWRates& rates, Pattern pattern, bool absolute,
    const TakeRoots& take_roots, const Parallel& parallel) {
  const ScoreUpdate update(rates, take_roots, pattern.m);
  const std::vector<Piece> pieces = pieces_of(matrices, count, pattern.m);
  parallel(static_cast<int64_t>(pieces.size()), [&](int64_t p) {
    const auto& [m, first, last] = pieces[p];
    const AdamWMatrix& matrix = matrices[m];
    if (!update.finite()) {
      if (overwritten(matrix)) mask(matrix, pattern, absolute, first, last);
      return;
    }
    update.run(matrix, first, last, [&, &matrix = matrix](int64_t begin, int64_t end) {
      mask(matrix, pattern, absolute, begin, end);
    });
  });
}

}  // namespace tamt
