#include <cstring>

#include "sparse_matrix.h"

namespace tamt {
namespace {

static_assert(kSparseBlock == kSparsePanel, "a block of columns is a panel of the transposed matrix");

// A panel's rows for each of its blocks, by counting: those with the most entries first, those with as many in order.
void sort_rows(const OwnSparseMatrix& matrix, int64_t panel, uint8_t* order) {
  const SparseMatrix view = matrix.view();
  const int64_t first = panel * kSparsePanel, rows = view.panel_rows(panel), blocks = view.blocks();
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t places[kSparseBlock + 2] = {};  // of the rows with so many entries less than a block's most
    const auto less = [&](int64_t row) { return kSparseBlock - view.counts[(first + row) * blocks + block]; };
    for (int64_t row = 0; row < rows; ++row) ++places[less(row) + 1];
    for (int64_t i = 0; i < kSparseBlock; ++i) places[i + 1] += places[i];
    for (int64_t row = 0; row < rows; ++row) order[block * rows + places[less(row)]++] = static_cast<uint8_t>(row);
  }
}

// Calls visit(row, column, entry) for the entries in a block of columns, row by row.
template <typename Visit>
void walk_block(const SparseMatrix& matrix, int64_t block, const Visit& visit) {
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const uint8_t* counts = matrix.counts + row * matrix.blocks();
    int64_t entry = matrix.starts[row];
    for (int64_t before = 0; before < block; ++before) entry += counts[before];
    for (int64_t end = entry + counts[block]; entry < end; ++entry) {
      visit(row, block * kSparseBlock + matrix.column[entry], entry);
    }
  }
}

}  // namespace

OwnSparseMatrix transposed(
    const SparseMatrix& matrix, const std::function<void(int64_t, const std::function<void(int64_t)>&)>& parallel) {
  const int64_t entries = matrix.starts[matrix.rows], bytes = matrix.type == Type::kFloat ? 4 : 2;
  const int64_t blocks = (matrix.rows + kSparseBlock - 1) / kSparseBlock;
  OwnSparseMatrix other{matrix.columns, matrix.rows, matrix.type, {}, {}, {}, {}, {}};
  other.values.resize(entries * bytes);
  other.column.resize(entries);
  other.counts.resize(matrix.columns * blocks);
  other.starts.resize(matrix.columns + 1);
  other.order.resize(matrix.columns * blocks);
  parallel(matrix.blocks(), [&](int64_t block) {
    walk_block(matrix, block, [&](int64_t row, int64_t column, int64_t) {
      ++other.counts[column * blocks + row / kSparseBlock];
      ++other.starts[column + 1];
    });
  });
  for (int64_t column = 0; column < matrix.columns; ++column) other.starts[column + 1] += other.starts[column];
  parallel(matrix.blocks(), [&](int64_t block) {
    const int64_t first = block * kSparseBlock;
    std::vector<int64_t> places(
        other.starts.begin() + first, other.starts.begin() + std::min(first + kSparseBlock, matrix.columns));
    walk_block(matrix, block, [&](int64_t row, int64_t column, int64_t entry) {
      const int64_t place = places[column - first]++;
      other.column[place] = static_cast<uint8_t>(row % kSparseBlock);
      std::memcpy(&other.values[place * bytes], static_cast<const char*>(matrix.values) + entry * bytes, bytes);
    });
    sort_rows(other, block, other.order.data() + first * blocks);
  });
  return other;
}

}  // namespace tamt
