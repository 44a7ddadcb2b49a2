#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"
#include "sparse_product.h"

// A product is added without being rounded before, as in every matrix product.
#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

namespace tamt {
namespace {

#if TAMT_HAS_AVX2
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2,popcnt,prefer-vector-width=512")
namespace avx512 {
constexpr int64_t kBytes = 64;
#include "sparse_linear_loops.h"
}  // namespace avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
namespace avx2 {
constexpr int64_t kBytes = 32;
#include "sparse_linear_loops.h"
}  // namespace avx2
#pragma GCC pop_options
#endif
namespace generic {
constexpr int64_t kBytes = 16;
#include "sparse_linear_loops.h"
}  // namespace generic

const ProductLoops& loops_for(Type type) {
#if TAMT_HAS_AVX2
  static constexpr ProductLoops wide{16, 64, 4, avx512::pack, avx512::multiply, avx512::unpack};
  static constexpr ProductLoops narrow{8, 32, 4, avx2::pack, avx2::multiply, avx2::unpack};
  if (instruction_set == InstructionSet::kAvx512) {
    if (const ProductLoops* halves = bfloat16_loops(); halves && type == Type::kBFloat16) return *halves;
    return wide;
  }
  if (instruction_set == InstructionSet::kAvx2 && __builtin_cpu_supports("fma")) return narrow;
#endif
  static constexpr ProductLoops plain{4, 16, 4, generic::pack, generic::multiply, generic::unpack};
  return plain;
}

}  // namespace

void sparse_linear_kernel(const SparseProduct& product, const Parallel& parallel) {
  if (sparse_linear_few_kernel(product, parallel)) return;
  const ProductLoops& loops = loops_for(product.weight.type);
  const int64_t tokens = product.tokens, columns = product.weight.columns, blocks = product.weight.blocks();
  const int64_t tiles = (tokens + loops.most_lanes - 1) / loops.most_lanes;
  const auto tile_of = [&](int64_t tile) {  // the last may be smaller
    const int64_t left = tokens - tile * loops.most_lanes;
    return std::min(loops.most_lanes, (left + loops.lanes - 1) / loops.lanes * loops.lanes);
  };
  const int64_t padded = (tiles - 1) * loops.most_lanes + tile_of(tiles - 1);
  const std::unique_ptr<char[], decltype(&std::free)> packed(
      static_cast<char*>(std::aligned_alloc(64, (padded * columns * loops.bytes + 63) / 64 * 64)), &std::free);
  if (!packed) throw std::bad_alloc();
  const auto packed_tile = [&](int64_t tile) { return packed.get() + tile * loops.most_lanes * columns * loops.bytes; };
  parallel(tiles * blocks, [&](int64_t task) {
    const int64_t tile = task / blocks, begin = task % blocks * kBlock, end = std::min(begin + kBlock, columns);
    loops.pack(product, tile * loops.most_lanes, tile_of(tile), begin, end, packed_tile(tile));
  });
  parallel(tiles * product.weight.panels(), [&](int64_t task) {
    const int64_t panel = task / tiles, tile = task % tiles;
    alignas(64) float sums[kPanel * kMostTokens];
    loops.multiply(product.weight, panel, tile_of(tile), packed_tile(tile), sums);
    loops.unpack(product, panel, tile * loops.most_lanes, tile_of(tile), sums);
  });
}

}  // namespace tamt
