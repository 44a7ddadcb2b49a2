// How sparse_linear_kernel.cpp and its like for bfloat16 go over a matrix. Free of torch.
#pragma once

#include <cstdint>

#include "instruction_set.h"
#include "kernels.h"

namespace tamt {

struct Output {
  void* data;
  Type type;
  int64_t tokens, columns;
  const float* bias;  // or null
};

// The steps of a product, as compiled for one instruction set. A tile is a number of tokens whose input is packed as
// [columns][tile], and whose output is summed as [rows of a panel][tile].
struct ProductLoops {
  int64_t lanes, most_lanes;  // a tile is a multiple of `lanes`, at most `most_lanes`
  int64_t bytes;              // of a packed entry
  // Columns from `begin` to `end` of the tokens from `token`.
  void (*pack)(const Matrix& x, int64_t token, int64_t tile, int64_t begin, int64_t end, void* packed);
  void (*multiply)(const SparseMatrix& weight, int64_t panel, int64_t tile, const void* x, float* sums);
  void (*unpack)(const Output& y, int64_t panel, int64_t token, int64_t tile, const float* sums);
  // Adds to the sums of a panel's entries, or begins them.
  void (*add_products)(
      const SparseMatrix& pattern, int64_t panel, int64_t tile, const void* grad, const void* x, bool begin,
      float* grad_values);
};

// The largest of most_lanes.
constexpr int64_t kMostTokens = 64;

// Those with the processor's bfloat16 products; null where it has none.
const ProductLoops* bfloat16_loops();

// Products of few tokens by looking up x in registers; false where the processor cannot, or for too many tokens.
bool sparse_linear_few_kernel(
    const Matrix& x, const SparseMatrix& weight, const Output& y, const Parallel& parallel);

}  // namespace tamt
