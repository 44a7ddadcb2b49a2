// AdamW, the count of the threshold's window and the masked weights in one pass over memory.
//
// While a block of scores is in the cache, it is counted and its weights are masked by the last threshold. Then the new
// threshold is selected from the entries inside the window, and the masked weights between the two thresholds, a few in
// ten thousand, are corrected by their positions.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"
#include "selection.h"

namespace tamt {
namespace {

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

void update_scores(
    float* __restrict__ score, const float* __restrict__ mean, const float* __restrict__ root, int64_t size,
    const Coefficients& coefficients) {
  vectorised_fused([=, c = coefficients]() TAMT_INLINE {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      score[i] = score[i] * c.decay + c.step * mean[i] / (divided(root[i], c) + c.eps);
    }
  });
}

int64_t size_of(Type type) { return type == Type::kFloat ? 4 : 2; }

// Bytes of a cache line. Few lines of a masked weight change in a step, and only these are stored: a store would cause
// a line to be read and written.
constexpr int64_t kLine = 64;

#if TAMT_HAS_AVX2
TAMT_AVX2 int64_t store_changed_avx2(const char* source, char* masked, int64_t bytes) {
  int64_t i = 0;
  for (; i + kLine <= bytes; i += kLine) {
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

void store_changed(const char* source, char* masked, int64_t bytes) {
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

// Up to this many entries of a piece are masked again one by one. For more it is faster to mask the whole piece. In the
// first steps of a search 3,000 entries of a piece lie between two thresholds, in later steps about 10.
constexpr int64_t kFew = 256;

// With more entries inside than this, a window is useless. Usually 1 % of a piece is inside. In the first step of a
// search, when the ties of the initial scores break up, half of the kept entries were: 0.2 GB for BERT-base.
constexpr int64_t kCrowd = kPieceSize / 16;

template <Source source>
class Step {
 public:
  Step(
      const AdamWMatrix* matrices, int64_t count, const AdamWRates& rates, bool renew, Threshold* thresholds,
      const TakeRoots& take_roots)
      : matrices_(matrices),
        last_(last_of(matrices, count, thresholds)),
        scores_(scores_of(matrices, count, last_)),
        thresholds_(thresholds),
        coefficients_(rates),
        renew_(renew),
        take_roots_(take_roots),
        selection_(scores_.data(), count, thresholds) {}

  void run(const Parallel& parallel) {
    const auto pieces = static_cast<int64_t>(selection_.pieces().size());
    if (!std::isfinite(coefficients_.factor)) {
      return parallel(pieces, [&](int64_t p) {
        const Piece& piece = selection_.pieces()[p];
        const AdamWMatrix& matrix = matrices_[piece.matrix];
        if (overwritten(matrix)) mask(matrix, thresholds_[piece.matrix], piece.begin, piece.end);
      });
    }
    if (renew_) selection_.choose_windows(parallel);
    parallel(pieces, [&](int64_t p) { step(selection_.pieces()[p]); });
    if (!renew_) return;
    selection_.finish(parallel);
    parallel(pieces, [&](int64_t p) { correct(selection_.pieces()[p]); });
  }

 private:
  // The thresholds by which `step` masks. NaN, instead of a number that cannot be a threshold, keeps nothing.
  static std::vector<Threshold> last_of(const AdamWMatrix* matrices, int64_t count, const Threshold* thresholds) {
    std::vector<Threshold> last(thresholds, thresholds + count);
    for (int64_t m = 0; m < count; ++m) {
      // `keep` has become 0: everything that the last threshold kept is masked again.
      if (matrices[m].keep == 0 && (last[m].value != INFINITY || last[m].cut != 0)) last[m].value = NAN;
      if (source == Source::kAbsolute && last[m].value < 0) last[m].value = NAN;
    }
    return last;
  }

  static std::vector<ScoreMatrix> scores_of(
      const AdamWMatrix* matrices, int64_t count, const std::vector<Threshold>& last) {
    std::vector<ScoreMatrix> scores;
    for (int64_t m = 0; m < count; ++m) {
      scores.push_back({matrices[m].score, matrices[m].gradient.size, matrices[m].keep, last[m].value});
    }
    return scores;
  }

  // Consecutive entries, and their gradients; null if these are zero.
  struct Run {
    int64_t begin, end;
    const char* grad;
  };

  struct Scratch {
    std::vector<float> root = std::vector<float>(kChunk);
    std::vector<int32_t> inside = std::vector<int32_t>(kPieceSize + kSlack), positions = inside;
    std::vector<Run> runs;
  };

  void step(Piece& piece) const {
    thread_local Scratch scratch;
    const AdamWMatrix& matrix = matrices_[piece.matrix];
    piece.counts = {};
    if (matrix.grad_rows != nullptr) {
      step_rows(matrix, piece, scratch);
    } else {
      step_all(matrix, piece, scratch);
    }
    if (selection_.warm(piece.matrix) && piece.counts.inside > kCrowd) return;
    piece.inside.assign(scratch.inside.begin(), scratch.inside.begin() + piece.counts.inside);
    piece.positions.assign(scratch.positions.begin(), scratch.positions.begin() + piece.counts.inside);
  }

  void step_all(const AdamWMatrix& matrix, Piece& piece, Scratch& scratch) const {
    const auto* grad = static_cast<const char*>(matrix.gradient.grad);
    const int64_t grad_size = size_of(matrix.gradient.grad_type);
    for (int64_t begin = piece.begin; begin < piece.end; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, piece.end);
      update_moments(matrix, {begin, end, grad + begin * grad_size}, scratch.root.data());
      take_roots_(scratch.root.data(), end - begin);
      for (int64_t block = begin; block < end; block += kBlock) {
        const int64_t block_end = std::min(block + kBlock, end);
        tamt::update_scores(
            matrix.score + block, matrix.mean + block, scratch.root.data() + (block - begin), block_end - block,
            coefficients_);
        if (!renew_) continue;
        collect(matrix, piece, block, block_end, scratch);
        mask(matrix, last_[piece.matrix], block, block_end);
      }
    }
  }

  // For a matrix of which few rows have a gradient. Rows that never had one are only counted.
  void step_rows(const AdamWMatrix& matrix, Piece& piece, Scratch& scratch) const {
    scratch.runs.clear();
    add_runs(matrix, piece, scratch.runs);
    for (auto first = scratch.runs.begin(); first != scratch.runs.end();) {
      // As many runs as have room for their roots.
      int64_t size = 0;
      auto last = first;
      for (; last != scratch.runs.end() && size + (last->end - last->begin) <= kChunk; ++last) {
        update_moments(matrix, *last, scratch.root.data() + size);
        size += last->end - last->begin;
      }
      take_roots_(scratch.root.data(), size);
      const float* root = scratch.root.data();
      for (; first != last; ++first) {
        const int64_t run = first->end - first->begin;
        tamt::update_scores(matrix.score + first->begin, matrix.mean + first->begin, root, run, coefficients_);
        root += run;
      }
    }
    if (!renew_) return;
    collect(matrix, piece, piece.begin, piece.end, scratch);
    for (const Run& run : scratch.runs) mask(matrix, last_[piece.matrix], run.begin, run.end);
  }

  void add_runs(const AdamWMatrix& matrix, const Piece& piece, std::vector<Run>& runs) const {
    const auto* grad = static_cast<const char*>(matrix.gradient.grad);
    const int64_t grad_size = size_of(matrix.gradient.grad_type), columns = matrix.columns;
    for (int64_t begin = piece.begin, end; begin < piece.end; begin = end) {
      const int64_t row = begin / columns;
      end = std::min({(row + 1) * columns, piece.end, begin + kChunk});
      const int32_t grad_row = matrix.grad_rows[row];
      if (grad_row == kNoMoments && coefficients_.keeps_scores_without_moments()) continue;
      runs.push_back(
          {begin, end, grad_row < 0 ? nullptr : grad + (grad_row * columns + begin - row * columns) * grad_size});
    }
  }

  void collect(const AdamWMatrix& matrix, Piece& piece, int64_t begin, int64_t end, Scratch& scratch) const {
    const int64_t collected = piece.counts.inside;
    piece.counts.add(scan<source, true>(
        reinterpret_cast<const int32_t*>(matrix.score + begin), end - begin, selection_.window(piece.matrix),
        scratch.inside.data() + collected, scratch.positions.data() + collected, static_cast<int32_t>(begin - piece.begin)));
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

  // Whether the gradient lies in the memory of the masked weight.
  static bool overwritten(const AdamWMatrix& matrix) {
    return matrix.masked != nullptr && matrix.gradient.grad == matrix.masked;
  }

  static void mask(const AdamWMatrix& matrix, const Threshold& threshold, int64_t begin, int64_t end) {
    if (matrix.masked == nullptr) return;
    const bool absolute = source == Source::kAbsolute;
    if (overwritten(matrix)) {
      return mask_weight_kernel(
          matrix.gradient.weight, matrix.gradient.weight_type, matrix.score, threshold.value, threshold.cut, absolute,
          matrix.masked, matrix.masked_type, begin, end);
    }
    alignas(kLine) char block[kBlock * sizeof(float)];
    const int64_t weight_size = size_of(matrix.gradient.weight_type), masked_size = size_of(matrix.masked_type);
    for (; begin < end; begin += kBlock) {
      const int64_t size = std::min(kBlock, end - begin);
      mask_weight_kernel(
          static_cast<const char*>(matrix.gradient.weight) + begin * weight_size, matrix.gradient.weight_type,
          matrix.score + begin, threshold.value, threshold.cut - begin, absolute, block, matrix.masked_type, 0, size);
      store_changed(block, static_cast<char*>(matrix.masked) + begin * masked_size, size * masked_size);
    }
  }

  // Masks by the new threshold what `step` masked by the last one.
  void correct(const Piece& piece) const {
    const AdamWMatrix& matrix = matrices_[piece.matrix];
    if (matrix.masked == nullptr) return;
    const Threshold &last = last_[piece.matrix], &threshold = thresholds_[piece.matrix];
    if (selection_.missed(piece.matrix) || threshold.has_nan || last.value != last.value) {
      return mask(matrix, threshold, piece.begin, piece.end);
    }
    // Only entries between the two thresholds can be wrong, or equal to one of them because of the cuts.
    const int32_t key = key_of<source>(static_cast<int32_t>(bits_of(threshold.value)));
    const int32_t last_key = key_of<source>(static_cast<int32_t>(bits_of(last.value)));
    if (key == last_key && threshold.cut == last.cut) return;
    const int32_t low = std::min(key, last_key), high = std::max(key, last_key);
    const Window window = selection_.window(piece.matrix);
    // Ties with an end of the window were counted, not collected.
    const bool low_matters = low <= window.low && window.low <= high, high_matters = low <= window.high && window.high <= high;
    if ((low_matters && piece.counts.at_low > 0) || (high_matters && piece.counts.at_high > 0)) {
      return mask(matrix, threshold, piece.begin, piece.end);
    }
    if (piece.crowded()) return mask(matrix, threshold, piece.begin, piece.end);
    const auto between = [low, high](int32_t key) { return low <= key && key <= high; };
    if (std::count_if(piece.inside.begin(), piece.inside.end(), between) > kFew) {
      return mask(matrix, threshold, piece.begin, piece.end);
    }
    std::array<int64_t, kFew> wrong;
    int64_t count = 0;
    for (size_t i = 0; i < piece.inside.size(); ++i) {
      if (between(piece.inside[i])) {
        const int64_t position = wrong[count++] = piece.begin + piece.positions[i];
        fetch(matrix.score, position, sizeof(float));
        fetch(matrix.gradient.weight, position, size_of(matrix.gradient.weight_type));
        fetch(matrix.masked, position, size_of(matrix.masked_type));
      }
    }
    for (int64_t i = 0; i < count; ++i) mask(matrix, threshold, wrong[i], wrong[i] + 1);
  }

  static void fetch(const void* entries, int64_t position, int64_t size) {
    __builtin_prefetch(static_cast<const char*>(entries) + position * size);
  }

  const AdamWMatrix* matrices_;
  const std::vector<Threshold> last_;
  const std::vector<ScoreMatrix> scores_;
  Threshold* thresholds_;
  const Coefficients coefficients_;
  const bool renew_;
  const TakeRoots& take_roots_;
  Selection<source> selection_;
};

}  // namespace

void mask_adamw_kernel(
    const AdamWMatrix* matrices, int64_t count, const AdamWRates& rates, bool renew, bool absolute,
    Threshold* thresholds, const TakeRoots& take_roots, const Parallel& parallel) {
  if (absolute) {
    Step<Source::kAbsolute>(matrices, count, rates, renew, thresholds, take_roots).run(parallel);
  } else {
    Step<Source::kSigned>(matrices, count, rates, renew, thresholds, take_roots).run(parallel);
  }
}

}  // namespace tamt
