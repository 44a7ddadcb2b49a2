// A matrix of which only the kept entries are stored. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../types.h"

namespace tamt {

// Rows and columns of a cell: the input of 64 tokens for a cell fits the first cache, and its columns' numbers a byte.
constexpr int64_t kCell = 128;

// The entries of one row in one cell.
struct SparseRow {
  int64_t begin, count;
};

// Cells, those of kCell rows one after another, and in each its rows, those with the most entries first: a loop over the
// entries of row after row then is of the length that the processor expects. sparse_pattern in tamt_kernels/reference.py
// defines it.
struct SparseMatrix {
  int64_t rows, columns;
  const void* values;     // null where the pattern alone counts
  Type type;              // kFloat or kBFloat16
  const uint8_t* column;  // of each entry, in its cell
  const uint8_t* order;   // [cells][kCell]: the rows of a cell
  const uint8_t* counts;  // [cells][kCell]: their entries, in that order
  const int64_t* starts;  // [cells + 1]: where a cell's entries begin

  int64_t blocks() const { return (columns + kCell - 1) / kCell; }
  int64_t panels() const { return (rows + kCell - 1) / kCell; }
  int64_t cell(int64_t panel, int64_t block) const { return panel * blocks() + block; }
  SparseRow find(int64_t row, int64_t block) const {
    const int64_t at = cell(row / kCell, block);
    int64_t begin = starts[at], i = at * kCell;
    for (; order[i] != row % kCell; ++i) begin += counts[i];
    return {begin, counts[i]};
  }
};

// A matrix with its memory.
struct OwnSparseMatrix {
  int64_t rows, columns;
  Type type;
  std::vector<uint8_t> values;  // their bytes
  std::vector<uint8_t> column, order, counts;
  std::vector<int64_t> starts;

  SparseMatrix view() const {
    return {rows, columns, values.data(), type, column.data(), order.data(), counts.data(), starts.data()};
  }
};

OwnSparseMatrix transposed(
    const SparseMatrix& matrix, const std::function<void(int64_t, const std::function<void(int64_t)>&)>& parallel);

}  // namespace tamt
