#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

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

const ProductLoops& float_loops(int64_t tokens) {
#if TAMT_HAS_AVX2
  static constexpr ProductLoops wide{16, 64, 4, avx512::pack, avx512::multiply, avx512::unpack, avx512::add_products};
  static constexpr ProductLoops narrow{8, 32, 4, avx2::pack, avx2::multiply, avx2::unpack, avx2::add_products};
  static const bool has_fma = __builtin_cpu_supports("fma");
  // Fewer tokens would leave half of a wide vector empty.
  if (instruction_set == InstructionSet::kAvx512 && tokens > narrow.lanes) return wide;
  if (has_avx2() && has_fma) return narrow;
#endif
  static constexpr ProductLoops plain{4, 16, 4, generic::pack, generic::multiply, generic::unpack, generic::add_products};
  return plain;
}

const ProductLoops& loops_for(Type type, int64_t tokens) {
  const bool halves = type == Type::kBFloat16 && instruction_set == InstructionSet::kAvx512 && bfloat16_loops();
  return halves ? *bfloat16_loops() : float_loops(tokens);
}

// Memory that begins with a line of the cache. A small one is kept for the thread's next product, which would find new
// pages to be empty and have the system clear them.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    if (kept_.size_ >= bytes) {
      std::swap(memory_, kept_.memory_);
      std::swap(size_, kept_.size_);
      return;
    }
    size_ = (bytes + 63) / 64 * 64;
    memory_.reset(static_cast<char*>(std::aligned_alloc(64, size_)));
    if (!memory_) throw std::bad_alloc();
  }
  ~Scratch() {
    if (this == &kept_ || size_ > kMostKept || size_ < kept_.size_) return;
    std::swap(memory_, kept_.memory_);
    std::swap(size_, kept_.size_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* data() const { return memory_.get(); }

 private:
  static constexpr int64_t kMostKept = 8 << 20;
  static thread_local Scratch kept_;

  Scratch() = default;

  std::unique_ptr<char[], decltype(&std::free)> memory_{nullptr, &std::free};
  int64_t size_ = 0;
};

thread_local Scratch Scratch::kept_;

// A matrix of tokens, tile by tile.
class Tiles {
 public:
  Tiles(const Matrix& matrix, const ProductLoops& loops, const Parallel& parallel)
      : matrix_(matrix), loops_(loops), memory_(offset(count() - 1) + size(count() - 1) * matrix.columns * loops.bytes) {
    const int64_t blocks = (matrix.columns + kCell - 1) / kCell;
    parallel(count() * blocks, [&](int64_t task) {
      const int64_t tile = task / blocks, begin = task % blocks * kCell;
      const int64_t end = std::min(begin + kCell, matrix.columns);
      loops.pack(matrix, first(tile), size(tile), begin, end, memory_.data() + offset(tile));
    });
  }

  int64_t count() const { return (matrix_.rows + loops_.most_lanes - 1) / loops_.most_lanes; }
  int64_t first(int64_t tile) const { return tile * loops_.most_lanes; }  // token
  int64_t size(int64_t tile) const {  // the last may be smaller
    const int64_t left = matrix_.rows - first(tile);
    return std::min(loops_.most_lanes, (left + loops_.lanes - 1) / loops_.lanes * loops_.lanes);
  }
  const void* operator[](int64_t tile) const { return memory_.data() + offset(tile); }

 private:
  int64_t offset(int64_t tile) const { return first(tile) * matrix_.columns * loops_.bytes; }

  Matrix matrix_;
  const ProductLoops& loops_;
  Scratch memory_;
};

// Calls visit(first, count) for parts of a matrix's rows: as many at a time as fit the second cache of each of so many
// threads when they are packed, at least a tile of them. A part is used before another one is packed.
template <typename Visit>
void in_parts(const Matrix& x, const ProductLoops& loops, int64_t threads, const Visit& visit) {
  constexpr int64_t kBytes = 1 << 20;
  const int64_t tile = loops.most_lanes;
  const int64_t most = std::max<int64_t>(threads * kBytes / (tile * x.columns * loops.bytes), 1) * tile;
  for (int64_t first = 0; first < x.rows; first += most) visit(first, std::min(most, x.rows - first));
}

Matrix some_rows(const Matrix& x, int64_t first, int64_t count) {
  const int64_t bytes = x.columns * (x.type == Type::kFloat ? 4 : 2);
  return {static_cast<const char*>(x.data) + first * bytes, x.type, count, x.columns};
}

}  // namespace

void sparse_linear_kernel(
    const Matrix& x, const SparseMatrix& weight, const float* bias, void* y, Type y_type, const Parallel& parallel,
    int64_t threads) {
  const Output output{y, y_type, x.rows, weight.rows, bias};
  if (sparse_linear_few_kernel(x, weight, output, parallel)) return;
  const ProductLoops& loops = loops_for(weight.type, x.rows);
  in_parts(x, loops, threads, [&](int64_t first, int64_t count) {
    const Tiles tiles(some_rows(x, first, count), loops, parallel);
    // Panel after panel, for which the input of a tile stays in the second cache.
    parallel(tiles.count() * weight.panels(), [&](int64_t task) {
      const int64_t tile = task / weight.panels(), panel = task % weight.panels();
      alignas(64) float sums[kCell * kMostTokens];
      loops.multiply(weight, panel, tiles.size(tile), tiles[tile], sums);
      loops.unpack(output, panel, first + tiles.first(tile), tiles.size(tile), sums);
    });
  });
}

void sparse_linear_backward_values_kernel(
    const Matrix& grad_output, const Matrix& x, const SparseMatrix& pattern, float* grad_values,
    const Parallel& parallel) {
  const ProductLoops& loops = float_loops(x.rows);
  in_parts(x, loops, 1, [&](int64_t first, int64_t count) {
    const Tiles grads(some_rows(grad_output, first, count), loops, parallel);
    const Tiles inputs(some_rows(x, first, count), loops, parallel);
    parallel(pattern.panels(), [&](int64_t panel) {
      for (int64_t tile = 0; tile < inputs.count(); ++tile) {
        const bool begin = first + tile == 0;
        loops.add_products(pattern, panel, inputs.size(tile), grads[tile], inputs[tile], begin, grad_values);
      }
    });
  });
}

}  // namespace tamt
