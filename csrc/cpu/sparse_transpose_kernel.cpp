#include <algorithm>
#include <numeric>

#include "convert.h"
#include "sparse_matrix.h"

namespace tamt {
namespace {

// One cell, whose columns become rows.
template <typename Value>
void transpose_cell(const SparseMatrix& matrix, int64_t from, OwnSparseMatrix& other, int64_t to) {
  int64_t counts[kCell] = {}, places[kCell];
  for (int64_t entry = matrix.starts[from]; entry < matrix.starts[from + 1]; ++entry) ++counts[matrix.column[entry]];
  uint8_t* order = other.order.data() + to * kCell;
  std::iota(order, order + kCell, uint8_t{0});
  std::stable_sort(order, order + kCell, [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
  int64_t place = other.starts[to];
  for (int64_t i = 0; i < kCell; ++i) {
    other.counts[to * kCell + i] = static_cast<uint8_t>(counts[order[i]]);
    places[order[i]] = place;
    place += counts[order[i]];
  }
  auto* values = reinterpret_cast<Value*>(other.values.data());
  int64_t entry = matrix.starts[from];
  for (int64_t i = from * kCell; i < (from + 1) * kCell; ++i) {
    for (const int64_t end = entry + matrix.counts[i]; entry < end; ++entry) {
      const int64_t at = places[matrix.column[entry]]++;
      other.column[at] = matrix.order[i];
      values[at] = static_cast<const Value*>(matrix.values)[entry];
    }
  }
}

}  // namespace

OwnSparseMatrix transposed(
    const SparseMatrix& matrix, const std::function<void(int64_t, const std::function<void(int64_t)>&)>& parallel) {
  const int64_t panels = matrix.panels(), blocks = matrix.blocks(), cells = panels * blocks;
  const int64_t entries = matrix.starts[cells], bytes = matrix.type == Type::kFloat ? 4 : 2;
  OwnSparseMatrix other{matrix.columns, matrix.rows, matrix.type, {}, {}, {}, {}, {}};
  other.values.resize(entries * bytes);
  other.column.resize(entries);
  other.order.resize(cells * kCell);
  other.counts.resize(cells * kCell);
  other.starts.resize(cells + 1);
  const auto like = [&](int64_t to) { return matrix.cell(to % panels, to / panels); };
  for (int64_t to = 0; to < cells; ++to) {
    other.starts[to + 1] = other.starts[to] + matrix.starts[like(to) + 1] - matrix.starts[like(to)];
  }
  const auto transpose = matrix.type == Type::kFloat ? &transpose_cell<float> : &transpose_cell<BFloat16>;
  parallel(cells, [&](int64_t to) { transpose(matrix, like(to), other, to); });
  return other;
}

}  // namespace tamt
