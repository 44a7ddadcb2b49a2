// The update of scores by AdamW, block by block, and what is done with each block while it is in the cache. Shared by the
// kernels that differ in how they mask. Does not use torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

#if TAMT_HAS_AVX2
#include <immintrin.h>
#endif

namespace tamt {

struct Coefficients {
  float factor, mean_rate, beta2, square_rate, decay, step, root, root_inverse, eps;
  bool lerp_from_mean;

  Coefficients(const AdamWRates& rates)
      : factor(rates.factor),
        mean_rate(static_cast<float>(1 - rates.beta1)),
        beta2(static_cast<float>(rates.beta2)),
        square_rate(static_cast<float>(1 - rates.beta2)),
        decay(rates.decay),
        step(-rates.step_size),
        root(rates.root),
        root_inverse(1 / rates.root),
        eps(static_cast<float>(rates.eps)),
        lerp_from_mean(mean_rate < 0.5f) {
    if (!lerp_from_mean) mean_rate -= 1;  // torch interpolates from the nearer end
  }

  bool keeps_scores_without_moments() const { return decay == 1 && eps > 0; }
};

// Rounds as torch's AdamW on a CPU: fused multiply-adds where torch has them, and -ffp-contract=off prevents others.
template <typename Grad, typename Weight>
TAMT_INLINE inline void update_moments(
    const Grad* __restrict__ grad, const Weight* __restrict__ weight, float* __restrict__ mean,
    float* __restrict__ square, float* __restrict__ root, int64_t size, const Coefficients c) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) {
    const float gradient = to_float(grad[i]) * to_float(weight[i]) * c.factor;
    mean[i] = __builtin_fmaf(c.mean_rate, gradient - mean[i], c.lerp_from_mean ? mean[i] : gradient);
    root[i] = square[i] = __builtin_fmaf(c.square_rate * gradient, gradient, c.beta2 * square[i]);
  }
}

// The same for a gradient of zero.
TAMT_INLINE inline void decay_moments(
    float* __restrict__ mean, float* __restrict__ square, float* __restrict__ root, int64_t size,
    const Coefficients c) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) {
    mean[i] = __builtin_fmaf(c.mean_rate, 0.0f - mean[i], c.lerp_from_mean ? mean[i] : 0.0f);
    root[i] = square[i] = c.beta2 * square[i];
  }
}

#if TAMT_HAS_AVX2
template <typename Loop>
__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))) void run_fma(const Loop& loop) {
  loop();
}
#endif

// As `vectorised`, for a loop with fused multiply-adds. All machines with AVX-512 have them, and most with AVX2.
template <typename Loop>
void vectorised_fused(const Loop& loop) {
#if TAMT_HAS_AVX2
  if (instruction_set == InstructionSet::kAvx512) return run_avx512(loop);
  if (instruction_set == InstructionSet::kAvx2 && __builtin_cpu_supports("fma")) return run_fma(loop);
#endif
  loop();
}

// root / c.root, rounded like a division, by a product and two fused multiply-adds (Markstein, "Computation of
// elementary functions on the IBM RISC System/6000 processor", 1990). Nothing underflows, as a root is 0 or at least
// 3e-23. Verified for all roots from 1 to 2 and 4,000 divisors. A division would take a tenth of the step on some CPUs.
TAMT_INLINE inline float divided(float root, const Coefficients& c) {
  const float near = root * c.root_inverse;
  const float quotient = __builtin_fmaf(__builtin_fmaf(-near, c.root, root), c.root_inverse, near);
  return root < INFINITY ? quotient : root;
}

inline void update_scores(
    float* __restrict__ score, const float* __restrict__ mean, const float* __restrict__ root, int64_t size,
    const Coefficients& coefficients) {
  vectorised_fused([=, c = coefficients]() TAMT_INLINE {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      score[i] = score[i] * c.decay + c.step * mean[i] / (divided(root[i], c) + c.eps);
    }
  });
}

inline int64_t size_of(Type type) { return type == Type::kFloat ? 4 : 2; }

// Bytes of a cache line. Few lines of a masked weight change in a step, and only these are stored: a store would cause
// a line to be read and written.
constexpr int64_t kLine = 64;

// Bytes by which masked weights are fetched ahead: the next block of them, which no prefetcher expects while the current
// one's scores are updated.
constexpr int64_t kMaskedAhead = 4096;

#if TAMT_HAS_AVX2
TAMT_AVX2 inline int64_t store_changed_avx2(const char* source, char* masked, int64_t bytes) {
  int64_t i = 0;
  for (; i + kLine <= bytes; i += kLine) {
    __builtin_prefetch(masked + i + kMaskedAhead);
    const auto *from = reinterpret_cast<const __m256i*>(source + i);
    auto* to = reinterpret_cast<__m256i*>(masked + i);
    const __m256i first = _mm256_loadu_si256(from), second = _mm256_loadu_si256(from + 1);
    const __m256i changed = _mm256_or_si256(
        _mm256_xor_si256(first, _mm256_loadu_si256(to)), _mm256_xor_si256(second, _mm256_loadu_si256(to + 1)));
    if (_mm256_testz_si256(changed, changed)) continue;
    _mm256_storeu_si256(to, first);
    _mm256_storeu_si256(to + 1, second);
  }
  return i;
}
#endif

inline void store_changed(const char* source, char* masked, int64_t bytes) {
  int64_t i = 0;
#if TAMT_HAS_AVX2
  if (has_avx2()) i = store_changed_avx2(source, masked, bytes);
#endif
  for (; i < bytes; i += kLine) {
    const int64_t length = std::min(kLine, bytes - i);
    if (std::memcmp(source + i, masked + i, length) != 0) std::memcpy(masked + i, source + i, length);
  }
}

// Entries whose roots are computed at once, which fit into the L2 cache with their operands, and entries whose scores
// are updated, counted and masked at once, which fit into the L1 cache.
constexpr int64_t kChunk = 16384, kBlock = 1024;


// Whether the gradient lies in the memory of the masked weight.
inline bool overwritten(const AdamWMatrix& matrix) {
  return matrix.masked != nullptr && matrix.gradient.grad == matrix.masked;
}

class ScoreUpdate {
 public:
  // `group` divides what is updated at once: masks of N of M entries need whole groups.
  ScoreUpdate(const AdamWRates& rates, const TakeRoots& take_roots, int64_t group = 1)
      : coefficients_(rates), take_roots_(take_roots), chunk_(kChunk / group * group), block_(kBlock / group * group) {}

  bool finite() const { return std::isfinite(coefficients_.factor); }

  // Updates the scores from `begin` to `end`, and calls `updated(begin, end)` for each block of them. If the gradient
  // holds only some rows, a block is a row, and rows that never had a gradient are left out.
  template <typename Updated>
  void run(const AdamWMatrix& matrix, int64_t begin, int64_t end, const Updated& updated) const {
    thread_local std::vector<float> root(kChunk);
    if (matrix.grad_rows != nullptr) return run_rows(matrix, begin, end, root.data(), updated);
    const auto* grad = static_cast<const char*>(matrix.gradient.grad);
    const int64_t grad_size = size_of(matrix.gradient.grad_type);
    for (; begin < end; begin += chunk_) {
      const int64_t chunk_end = std::min(begin + chunk_, end);
      update_moments(matrix, {begin, chunk_end, grad + begin * grad_size}, root.data());
      take_roots_(root.data(), chunk_end - begin);
      for (int64_t block = begin; block < chunk_end; block += block_) {
        const int64_t block_end = std::min(block + block_, chunk_end);
        update_scores(
            matrix.score + block, matrix.mean + block, root.data() + (block - begin), block_end - block, coefficients_);
        updated(block, block_end);
      }
    }
  }

 private:
  // Consecutive entries, and their gradients; null if these are zero.
  struct Run {
    int64_t begin, end;
    const char* grad;
  };

  template <typename Updated>
  void run_rows(const AdamWMatrix& matrix, int64_t begin, int64_t end, float* root, const Updated& updated) const {
    thread_local std::vector<Run> runs;
    runs.clear();
    add_runs(matrix, begin, end, runs);
    for (auto first = runs.begin(); first != runs.end();) {
      // As many runs as have room for their roots.
      int64_t size = 0;
      auto last = first;
      for (; last != runs.end() && size + (last->end - last->begin) <= kChunk; ++last) {
        update_moments(matrix, *last, root + size);
        size += last->end - last->begin;
      }
      take_roots_(root, size);
      for (int64_t position = 0; first != last; ++first) {
        const int64_t length = first->end - first->begin;
        update_scores(
            matrix.score + first->begin, matrix.mean + first->begin, root + position, length, coefficients_);
        updated(first->begin, first->end);
        position += length;
      }
    }
  }

  void add_runs(const AdamWMatrix& matrix, int64_t begin, int64_t end, std::vector<Run>& runs) const {
    const auto* grad = static_cast<const char*>(matrix.gradient.grad);
    const int64_t grad_size = size_of(matrix.gradient.grad_type), columns = matrix.columns;
    for (int64_t run_end; begin < end; begin = run_end) {
      const int64_t row = begin / columns;
      run_end = std::min({(row + 1) * columns, end, begin + chunk_});
      const int32_t grad_row = matrix.grad_rows[row];
      if (grad_row == kNoMoments && coefficients_.keeps_scores_without_moments()) continue;
      runs.push_back(
          {begin, run_end, grad_row < 0 ? nullptr : grad + (grad_row * columns + begin - row * columns) * grad_size});
    }
  }

  void update_moments(const AdamWMatrix& matrix, const Run& run, float* root) const {
    const int64_t begin = run.begin, end = run.end;
    float *mean = matrix.mean + begin, *square = matrix.square + begin;
    if (run.grad == nullptr) {
      return vectorised_fused([=, c = coefficients_]() TAMT_INLINE { decay_moments(mean, square, root, end - begin, c); });
    }
    with_type(matrix.gradient.grad_type, [&](auto grad_element) {
      with_type(matrix.gradient.weight_type, [&](auto weight_element) {
        const auto* grad = reinterpret_cast<const decltype(grad_element)*>(run.grad);
        const auto* weight = static_cast<const decltype(weight_element)*>(matrix.gradient.weight) + begin;
        vectorised_fused([=, c = coefficients_]() TAMT_INLINE {
          tamt::update_moments(grad, weight, mean, square, root, end - begin, c);
        });
      });
    });
  }

  const Coefficients coefficients_;
  const TakeRoots& take_roots_;
  const int64_t chunk_, block_;
};

}  // namespace tamt
