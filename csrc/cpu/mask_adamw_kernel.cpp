// AdamW, the count of the threshold's window and the masked weights in one pass over memory.
//
// While a block of scores is in the cache, it is counted and its weights are masked by the last threshold. Then the new
// threshold is selected from the entries inside the window, and the masked weights between the two thresholds, a few in
// ten thousand, are corrected by their positions.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "adamw.h"
#include "kernels.h"
#include "selection.h"

namespace tamt {
namespace {

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
        update_(rates, take_roots),
        renew_(renew),
        selection_(scores_.data(), count, thresholds) {}

  void run(const Parallel& parallel) {
    const auto pieces = static_cast<int64_t>(selection_.pieces().size());
    if (!update_.finite()) {
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

  struct Scratch {
    std::vector<int32_t> inside = std::vector<int32_t>(kPieceSize + kSlack), positions = inside;
  };

  // Rows that never had a gradient are only counted.
  void step(Piece& piece) const {
    thread_local Scratch scratch;
    const AdamWMatrix& matrix = matrices_[piece.matrix];
    const bool some_rows = matrix.grad_rows != nullptr;
    piece.counts = {};
    update_.run(matrix, piece.begin, piece.end, [&](int64_t begin, int64_t end) {
      if (!renew_) return;
      if (!some_rows) collect(matrix, piece, begin, end, scratch);
      mask(matrix, last_[piece.matrix], begin, end);
    });
    if (renew_ && some_rows) collect(matrix, piece, piece.begin, piece.end, scratch);
    if (selection_.warm(piece.matrix) && piece.counts.inside > kCrowd) return;
    piece.inside.assign(scratch.inside.begin(), scratch.inside.begin() + piece.counts.inside);
    piece.positions.assign(scratch.positions.begin(), scratch.positions.begin() + piece.counts.inside);
  }

  void collect(const AdamWMatrix& matrix, Piece& piece, int64_t begin, int64_t end, Scratch& scratch) const {
    const int64_t collected = piece.counts.inside;
    piece.counts.add(scan<source, true>(
        reinterpret_cast<const int32_t*>(matrix.score + begin), end - begin, selection_.window(piece.matrix),
        scratch.inside.data() + collected, scratch.positions.data() + collected, static_cast<int32_t>(begin - piece.begin)));
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
  const ScoreUpdate update_;
  const bool renew_;
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
