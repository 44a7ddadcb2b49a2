// Exact selection with one read of the scores.
//
// A sample of a matrix gives a window that almost always holds the threshold. One pass counts the entries above the
// window and at each of its ends, and collects those strictly inside, a few percent, from which the threshold is
// selected. Scores may have millions of ties: few values at first, humps later. A value that dominates is in the sample
// and becomes an end of the window, where ties are only counted. A window that misses is replaced by one that cannot
// miss.
#include "kernels.h"
#include "selection.h"

namespace tamt {
namespace {

template <Source source>
void select(const ScoreMatrix* matrices, int64_t count, Threshold* thresholds, const Parallel& parallel) {
  Selection<source> selection(matrices, count, thresholds);
  selection.choose_windows(parallel);
  selection.scan_pieces(parallel);
  selection.finish(parallel);
}

}  // namespace

void topk_threshold_kernel(
    const ScoreMatrix* matrices, int64_t count, bool absolute, Threshold* thresholds, const Parallel& parallel) {
  auto* search = absolute ? &select<Source::kAbsolute> : &select<Source::kSigned>;
  search(matrices, count, thresholds, parallel);
}

}  // namespace tamt
