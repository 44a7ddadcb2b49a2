// The rows of an embedding that ids look up.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../operations.h"
#include "kernels.h"

namespace tamt {

// The rows that `ids` asks of a weight with `row_count` rows, as int64, one after the other. Raises IndexError if there
// is no such row. `operation` is the name for the message.
inline at::Tensor rows_to_look_up(const char* operation, const at::Tensor& ids, int64_t row_count) {
  const at::Tensor rows = ids.to(at::kLong).contiguous();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    TORCH_CHECK_INDEX(
        0 <= row[i] && row[i] < row_count, operation, ": ids has ", row[i], " but must have ids from 0 to ",
        row_count - 1, ", the rows of weight");
  }
  return rows;
}

// Calls sum(row, lookups, count) once for each distinct row but `padding_idx`, with the positions in `ids` that look it
// up. One thread has all look-ups of a row, in their order, so that a sum has the same bits at any number of threads.
template <class Sum>
void for_each_row_looked_up(
    const at::Tensor& ids, std::optional<int64_t> padding_idx, int64_t columns, const Sum& sum) {
  const at::Tensor rows = ids.to(at::kLong).contiguous();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  std::vector<int64_t> lookups(rows.numel());
  std::iota(lookups.begin(), lookups.end(), 0);
  std::stable_sort(lookups.begin(), lookups.end(), [row](int64_t a, int64_t b) { return row[a] < row[b]; });
  std::vector<int64_t> starts;  // of each row's look-ups
  for (size_t i = 0; i < lookups.size(); ++i) {
    if (i == 0 || row[lookups[i]] != row[lookups[i - 1]]) starts.push_back(static_cast<int64_t>(i));
  }
  const auto distinct = static_cast<int64_t>(starts.size());
  starts.push_back(rows.numel());
  at::parallel_for(0, distinct, grain_of_rows(columns), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t* of_row = lookups.data() + starts[i];
      if (padding_idx != row[*of_row]) sum(row[*of_row], of_row, starts[i + 1] - starts[i]);
    }
  });
}

}  // namespace tamt
