// Exact selection with one read of the scores.
//
// A sample of a matrix gives a window that almost surely holds the threshold. One pass counts what lies above the window
// and at each of its ends, and collects what lies strictly inside, a few percent, of which the threshold is then selected.
// Ties are never collected in numbers: scores take few values at first and have humps of ties later, so a value that
// dominates is met by the sample and becomes an end of the window. A window that misses is replaced by one that cannot.
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
