#include <algorithm>

#include "convert.h"
#include "kernels.h"

namespace tamt {
namespace {

template <typename Value>
void expand(const int64_t* ids, const SparseMatrix& weight, Value* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Value* to = out + i * weight.columns;
    std::fill(to, to + weight.columns, Value{});
    const uint8_t* counts = weight.counts + ids[i] * weight.blocks();
    int64_t entry = weight.starts[ids[i]];
    for (int64_t block = 0; block < weight.blocks(); ++block) {
      for (const int64_t last = entry + counts[block]; entry < last; ++entry) {
        to[block * kSparseBlock + weight.column[entry]] = static_cast<const Value*>(weight.values)[entry];
      }
    }
  }
}

}  // namespace

void sparse_embedding_kernel(const int64_t* ids, const SparseMatrix& weight, void* out, int64_t begin, int64_t end) {
  with_type(weight.type, [=](auto value) {
    using Value = decltype(value);
    expand(ids, weight, static_cast<Value*>(out), begin, end);
  });
}

}  // namespace tamt
