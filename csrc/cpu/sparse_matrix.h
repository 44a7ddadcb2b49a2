// A matrix of which only the kept entries are stored. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../types.h"

namespace tamt {

// Columns of a block: 64 tokens of so many inputs fill the first cache, and a column's number in its block fits a byte.
constexpr int64_t kSparseBlock = 128;
// Rows of a panel, which use a block of the input while it is in the first cache.
constexpr int64_t kSparsePanel = 128;

// Compressed sparse rows, whose columns are numbered within their block. The entries are in the order of the matrix, row
// by row. `pack` in tamt_kernels/reference.py defines it.
struct SparseMatrix {
  int64_t rows, columns;
  const void* values;     // null where the pattern alone counts
  Type type;              // kFloat or kBFloat16
  const uint8_t* column;  // of each entry, from the first column of its block
  const uint8_t* counts;  // [rows][blocks]: a row's entries in a block
  const int64_t* starts;  // [rows + 1]: where a row's entries begin
  const uint8_t* order;   // [panels][blocks][rows of the panel]: rows of a panel, the most entries in the block first

  int64_t blocks() const { return (columns + kSparseBlock - 1) / kSparseBlock; }
  int64_t panels() const { return (rows + kSparsePanel - 1) / kSparsePanel; }
  int64_t panel_rows(int64_t panel) const { return std::min(kSparsePanel, rows - panel * kSparsePanel); }
  const uint8_t* order_in(int64_t panel, int64_t block) const {
    return order + panel * kSparsePanel * blocks() + block * panel_rows(panel);
  }
};

// A matrix with its memory.
class OwnSparseMatrix {
 public:
  SparseMatrix view() const {
    return {rows, columns, values.data(), type, column.data(), counts.data(), starts.data(), order.data()};
  }

  int64_t rows, columns;
  Type type;
  std::vector<uint8_t> values;  // their bytes
  std::vector<uint8_t> column, counts;
  std::vector<int64_t> starts;
  std::vector<uint8_t> order;
};

OwnSparseMatrix transposed(
    const SparseMatrix& matrix, const std::function<void(int64_t, const std::function<void(int64_t)>&)>& parallel);

}  // namespace tamt
