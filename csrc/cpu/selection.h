// Selection from a window: the sample that gives a window, the scan that counts and collects, and the position of a
// rank. Used for scores in memory (threshold) and for scores that a step of AdamW has just written. Does not use torch.
#pragma once

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "convert.h"
#include "instruction_set.h"
#include "kernels.h"

namespace tamt {

// Scores are ranked by integer keys of the same order. -0 and +0 have the same key, and denormals keep their order even
// where floating-point comparisons would flush them.
enum class Source { kSigned, kAbsolute, kKeys };

constexpr int32_t kLowest = INT_MIN, kHighest = INT_MAX;  // no number has these keys

// By memcpy, because the scores were written as floats.
TAMT_INLINE inline int32_t load(const int32_t* bits) {
  int32_t loaded;
  std::memcpy(&loaded, bits, sizeof loaded);
  return loaded;
}

template <Source source>
TAMT_INLINE inline int32_t key_of(int32_t bits) {
  const int32_t magnitude = bits & INT_MAX;
  if (source == Source::kKeys) return bits;
  return source == Source::kAbsolute || bits >= 0 ? magnitude : -magnitude;
}

inline float value_of(int32_t key) { return float_of(key < 0 ? static_cast<uint32_t>(-key) | 0x80000000u : key); }

struct Window {
  int32_t low = kLowest, high = kHighest;
};

struct Counts {
  int64_t above = 0, at_high = 0, inside = 0, at_low = 0;
  uint32_t largest_magnitude = 0;  // larger than infinity's if there is a NaN

  void add(const Counts& other) {
    above += other.above;
    at_high += other.at_high;
    inside += other.inside;
    at_low += other.at_low;
    largest_magnitude = std::max(largest_magnitude, other.largest_magnitude);
  }
};

#if TAMT_HAS_AVX2
// Entries between the scan and its prefetches. Out-of-order execution alone covers only a few iterations, and so few
// loads.
constexpr int64_t kAhead = 512;

// Row m has the positions of the bits that are set in m: the lanes to move to the front.
constexpr auto kCompaction = [] {
  std::array<std::array<int32_t, 8>, 256> table{};
  for (int m = 0; m < 256; ++m) {
    for (int lane = 0, next = 0; lane < 8; ++lane) {
      if (m >> lane & 1) table[m][next++] = lane;
    }
  }
  return table;
}();

TAMT_AVX2 inline int64_t sum(__m256i lanes) {
  alignas(32) int32_t numbers[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(numbers), lanes);
  int64_t total = 0;
  for (const int32_t number : numbers) total += number;
  return total;
}

template <Source source, bool located>
TAMT_AVX2 int64_t scan_avx2(
    const int32_t* data, int64_t size, Window window, int32_t* inside, int32_t* positions, int32_t first,
    Counts& counts) {
  const __m256i low = _mm256_set1_epi32(window.low), high = _mm256_set1_epi32(window.high);
  const __m256i magnitude_bits = _mm256_set1_epi32(INT_MAX);
  __m256i above = _mm256_setzero_si256(), at_high = above, at_low = above, largest = above;
  int64_t collected = 0;
  __m256i position = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i + kAhead), _MM_HINT_T0);
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i));
    const __m256i magnitude = _mm256_and_si256(bits, magnitude_bits);
    __m256i key = bits;
    if (source == Source::kSigned) key = _mm256_sign_epi32(magnitude, bits);
    if (source == Source::kAbsolute) key = magnitude;
    largest = _mm256_max_epi32(largest, magnitude);
    above = _mm256_sub_epi32(above, _mm256_cmpgt_epi32(key, high));
    at_high = _mm256_sub_epi32(at_high, _mm256_cmpeq_epi32(key, high));
    at_low = _mm256_sub_epi32(at_low, _mm256_cmpeq_epi32(key, low));
    const __m256i within = _mm256_and_si256(_mm256_cmpgt_epi32(key, low), _mm256_cmpgt_epi32(high, key));
    const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(within));
    const __m256i order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kCompaction[lanes].data()));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(inside + collected), _mm256_permutevar8x32_epi32(key, order));
    if (located) {
      const __m256i moved = _mm256_permutevar8x32_epi32(position, order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(positions + collected), moved);
      position = _mm256_add_epi32(position, _mm256_set1_epi32(8));
    }
    collected += __builtin_popcount(lanes);
  }
  alignas(32) int32_t magnitudes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(magnitudes), largest);
  for (const int32_t magnitude : magnitudes) {
    counts.largest_magnitude = std::max(counts.largest_magnitude, static_cast<uint32_t>(magnitude));
  }
  counts.above += sum(above);
  counts.at_high += sum(at_high);
  counts.at_low += sum(at_low);
  counts.inside += collected;
  return i;
}

// GCC 12 warns about undefined operands in its own header for these instructions.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
template <Source source, bool located>
TAMT_AVX512 int64_t scan_avx512(
    const int32_t* data, int64_t size, Window window, int32_t* inside, int32_t* positions, int32_t first,
    Counts& counts) {
  const __m512i low = _mm512_set1_epi32(window.low), high = _mm512_set1_epi32(window.high);
  const __m512i magnitude_bits = _mm512_set1_epi32(INT_MAX), zero = _mm512_setzero_si512();
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i largest = zero, position = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  // Local counters: the compiler would store to `counts` in every iteration.
  int64_t i = 0, above = 0, at_high = 0, at_low = 0, collected = 0;
  for (; i + 16 <= size; i += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i + kAhead), _MM_HINT_T0);
    const __m512i bits = _mm512_loadu_si512(data + i);
    const __m512i magnitude = _mm512_and_si512(bits, magnitude_bits);
    __m512i key = bits;
    if (source == Source::kSigned) {
      key = _mm512_mask_sub_epi32(magnitude, _mm512_movepi32_mask(bits), zero, magnitude);
    }
    if (source == Source::kAbsolute) key = magnitude;
    largest = _mm512_max_epi32(largest, magnitude);
    above += _mm_popcnt_u32(_mm512_cmpgt_epi32_mask(key, high));
    at_high += _mm_popcnt_u32(_mm512_cmpeq_epi32_mask(key, high));
    at_low += _mm_popcnt_u32(_mm512_cmpeq_epi32_mask(key, low));
    const __mmask16 within = _mm512_mask_cmpgt_epi32_mask(_mm512_cmpgt_epi32_mask(key, low), high, key);
    // Compressed in a register: on some processors compression to memory takes many times as long.
    _mm512_storeu_si512(inside + collected, _mm512_maskz_compress_epi32(within, key));
    if (located) {
      _mm512_storeu_si512(positions + collected, _mm512_maskz_compress_epi32(within, position));
      position = _mm512_add_epi32(position, _mm512_set1_epi32(16));
    }
    collected += _mm_popcnt_u32(within);
  }
  counts.largest_magnitude =
      std::max(counts.largest_magnitude, static_cast<uint32_t>(_mm512_reduce_max_epi32(largest)));
  counts.above += above;
  counts.at_high += at_high;
  counts.at_low += at_low;
  counts.inside += collected;
  return i;
}
#pragma GCC diagnostic pop
#endif

constexpr int64_t kSlack = 16;  // a vector

// Counts one piece of at most 2^31 entries, and collects the keys inside the window. `inside` must have room for all
// entries and kSlack more. With `located` so must `positions`, which gets their positions; that of the first entry is
// `first`.
template <Source source, bool located = false>
Counts scan(
    const int32_t* data, int64_t size, Window window, int32_t* inside, int32_t* positions = nullptr,
    int32_t first = 0) {
  Counts counts;
  int64_t i = 0;
#if TAMT_HAS_AVX2
  if (instruction_set == InstructionSet::kAvx512) {
    i = scan_avx512<source, located>(data, size, window, inside, positions, first, counts);
  } else if (has_avx2()) {
    i = scan_avx2<source, located>(data, size, window, inside, positions, first, counts);
  }
#endif
  for (; i < size; ++i) {
    const int32_t key = key_of<source>(load(data + i));
    counts.largest_magnitude = std::max(counts.largest_magnitude, static_cast<uint32_t>(load(data + i) & INT_MAX));
    counts.above += key > window.high;
    counts.at_high += key == window.high;
    counts.at_low += key == window.low;
    inside[counts.inside] = key;
    if (located) positions[counts.inside] = first + static_cast<int32_t>(i);
    counts.inside += window.low < key && key < window.high;
  }
  if (window.low == window.high) counts.at_low = 0;  // counted at the high end
  return counts;
}

constexpr int64_t kWorthSampling = 4096;  // with fewer entries than this, all are collected

// One random position from each of equal strata, so that no arrangement of scores always misleads the sample. The seed
// is fixed. It affects the speed, never the result.
template <Source source>
std::vector<int32_t> sample(const int32_t* data, int64_t size, int64_t samples) {
  std::vector<int32_t> keys(samples);
  uint64_t random = 0x9e3779b97f4a7c15u;
  for (int64_t i = 0; i < samples; ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const int64_t begin = i * size / samples, end = (i + 1) * size / samples;
    keys[i] = key_of<source>(load(data + begin + static_cast<int64_t>((random >> 33) % (end - begin))));
  }
  return keys;
}

// Four standard deviations of the rank of an entry in a sample: a window misses about once in ten thousand times.
inline int64_t reach(int64_t samples, double share) {
  return static_cast<int64_t>(4 * std::sqrt(static_cast<double>(samples) * share * (1 - share))) + 4;
}

// A window for the rank-th largest entry, without a previous threshold.
template <Source source>
Window sample_window(const int32_t* data, int64_t size, int64_t rank) {
  if (size < kWorthSampling) return {};
  // Balances the sample, at a cache miss per entry, against the selection from the entries inside the window.
  const auto samples = static_cast<int64_t>(0.5 * std::pow(static_cast<double>(size), 2.0 / 3.0));
  std::vector<int32_t> keys = sample<source>(data, size, samples);
  const double share = static_cast<double>(rank) / static_cast<double>(size);
  const auto middle = static_cast<int64_t>(share * static_cast<double>(samples));
  const int64_t far = reach(samples, share);
  Window window;
  auto first = keys.begin();
  if (middle - far >= 0) {
    std::nth_element(first, first + (middle - far), keys.end(), std::greater<>());
    window.high = *(first += middle - far);
  }
  if (middle + far < samples) {
    std::nth_element(first, keys.begin() + (middle + far), keys.end(), std::greater<>());
    window.low = keys[middle + far];
  }
  return window;
}

constexpr int64_t kSamplesAroundLast = 1024, kReachAroundLast = 6;

// A window for the rank-th largest entry, which was `last` in the last step; the scores have moved a little since. It
// takes in about 0.6 % of the entries on either side, unless so many tie with `last` that the rank most likely stays
// there.
template <Source source>
Window window_around(const int32_t* data, int64_t size, int64_t rank, int32_t last) {
  if (size < kWorthSampling) return {};
  std::vector<int32_t> keys = sample<source>(data, size, kSamplesAroundLast);
  const auto behind_above = std::partition(keys.begin(), keys.end(), [last](int32_t key) { return key > last; });
  const auto behind_ties = std::partition(behind_above, keys.end(), [last](int32_t key) { return key == last; });
  const int64_t above = behind_above - keys.begin(), at_least = behind_ties - keys.begin();
  const double share = static_cast<double>(rank) / static_cast<double>(size);
  const auto middle = static_cast<int64_t>(share * static_cast<double>(kSamplesAroundLast));
  const int64_t far = reach(kSamplesAroundLast, share);
  Window window;
  if (middle - above >= far && at_least - above >= far) {
    window.high = last;
  } else if (above > kReachAroundLast) {
    const auto end = behind_above - kReachAroundLast;
    std::nth_element(keys.begin(), end, behind_above, std::greater<>());
    window.high = *end;
  }
  if (at_least - middle >= far && at_least - above >= far) {
    window.low = last;
  } else if (at_least + kReachAroundLast <= kSamplesAroundLast) {
    const auto end = behind_ties + (kReachAroundLast - 1);
    std::nth_element(behind_ties, end, keys.end(), std::greater<>());
    window.low = *end;
  }
  return window;
}

// Whether the entry of a rank is at an end of the window, inside or outside. `rank` becomes the rank among the entries
// there.
enum class Position { kHigh, kInside, kLow, kMissed };

inline Position find(const Counts& counts, int64_t& rank) {
  if (rank <= counts.above) return Position::kMissed;
  rank -= counts.above;
  if (rank <= counts.at_high) return Position::kHigh;
  rank -= counts.at_high;
  if (rank <= counts.inside) return Position::kInside;
  rank -= counts.inside;
  return rank <= counts.at_low ? Position::kLow : Position::kMissed;
}

// The rank-th largest key, counted from 1. Reorders the keys.
inline int32_t select(std::vector<int32_t>& keys, int64_t rank) {
  std::vector<int32_t> inside;
  while (static_cast<int64_t>(keys.size()) >= kWorthSampling) {
    const auto size = static_cast<int64_t>(keys.size());
    const Window window = sample_window<Source::kKeys>(keys.data(), size, rank);
    inside.resize(size + kSlack);
    const Counts counts = scan<Source::kKeys>(keys.data(), size, window, inside.data());
    int64_t rank_inside = rank;
    const Position position = find(counts, rank_inside);
    if (position == Position::kHigh) return window.high;
    if (position == Position::kLow) return window.low;
    if (position == Position::kMissed || counts.inside == size) break;
    inside.resize(counts.inside);
    keys.swap(inside);
    rank = rank_inside;
  }
  std::nth_element(keys.begin(), keys.begin() + (rank - 1), keys.end(), std::greater<>());
  return keys[rank - 1];
}

// A piece of a matrix that one thread scans, and the results. A piece and its scratch memory fit into the L2 cache.
constexpr int64_t kPieceSize = 32768;

struct Piece {
  int64_t matrix, begin, end;
  Counts counts;
  std::vector<int32_t> inside;     // keys
  std::vector<uint16_t> positions;  // of these keys, relative to `begin`, if they are wanted

  // Whether too many entries were inside the window, so that they were only counted.
  bool crowded() const { return counts.inside > static_cast<int64_t>(inside.size()); }
};

// The search for the thresholds of several matrices, over all pieces in parallel.
template <Source source>
class Selection {
 public:
  Selection(const ScoreMatrix* matrices, int64_t count, Threshold* thresholds)
      : matrices_(matrices), thresholds_(thresholds), searches_(count) {
    for (int64_t m = 0; m < count; ++m) {
      searches_[m].first_piece = static_cast<int64_t>(pieces_.size());
      for (int64_t begin = 0; begin < matrices[m].size; begin += kPieceSize) {
        pieces_.push_back({m, begin, std::min(begin + kPieceSize, matrices[m].size), {}, {}, {}});
      }
      searches_[m].last_piece = static_cast<int64_t>(pieces_.size());
    }
  }

  std::vector<Piece>& pieces() { return pieces_; }
  Window window(int64_t m) const { return searches_[m].window; }
  // Whether the window of a matrix was opened around its last threshold.
  bool warm(int64_t m) const { return searches_[m].warm; }
  // Whether the first window of a matrix did not hold its threshold.
  bool missed(int64_t m) const { return searches_[m].missed; }

  void choose_windows(const Parallel& parallel) {
    parallel(static_cast<int64_t>(searches_.size()), [&](int64_t m) {
      const ScoreMatrix& matrix = matrices_[m];
      if (matrix.keep == 0) {
        searches_[m].window = {kHighest, kHighest};  // above every score: the scan only looks for NaN
      } else if (matrix.last == matrix.last) {
        searches_[m].window = window_around<source>(
            data(m), matrix.size, matrix.keep, key_of<source>(static_cast<int32_t>(bits_of(matrix.last))));
        searches_[m].warm = true;
      } else {
        searches_[m].window = sample_window<source>(data(m), matrix.size, matrix.keep);
      }
    });
  }

  void scan_pieces(const Parallel& parallel) {
    parallel(static_cast<int64_t>(pieces_.size()), [&](int64_t p) {
      Piece& piece = pieces_[p];
      const Search& search = searches_[piece.matrix];
      if (search.done) return;
      thread_local std::vector<int32_t> scratch(kPieceSize + kSlack);
      piece.counts =
          scan<source>(data(piece.matrix) + piece.begin, piece.end - piece.begin, search.window, scratch.data());
      piece.inside.assign(scratch.begin(), scratch.begin() + piece.counts.inside);
    });
  }

  // Finds the thresholds from the results of the scan. Matrices whose window missed are scanned again.
  void finish(const Parallel& parallel) {
    const auto unfinished = [](const Search& search) { return !search.done; };
    while (true) {
      parallel(static_cast<int64_t>(searches_.size()), [&](int64_t m) { finish(m); });
      if (std::none_of(searches_.begin(), searches_.end(), unfinished)) return;
      scan_pieces(parallel);
    }
  }

 private:
  struct Search {
    Window window;
    int64_t first_piece, last_piece;
    bool warm = false, missed = false, done = false;
  };

  const int32_t* data(int64_t m) const { return reinterpret_cast<const int32_t*>(matrices_[m].score); }

  void finish(int64_t m) {
    Search& search = searches_[m];
    if (search.done) return;
    search.done = true;
    Threshold& threshold = thresholds_[m];
    Counts counts;
    for (int64_t p = search.first_piece; p < search.last_piece; ++p) counts.add(pieces_[p].counts);
    threshold = {NAN, 0, counts.largest_magnitude > kInfinity};
    if (threshold.has_nan) return;
    if (matrices_[m].keep == 0) {
      threshold.value = INFINITY;
      return;
    }
    int64_t rank = matrices_[m].keep;
    int32_t key = 0;
    Position position = find(counts, rank);
    if (position == Position::kInside && crowded(search)) position = Position::kMissed;
    switch (position) {
      case Position::kMissed:
        search.window = search.warm ? sample_window<source>(data(m), matrices_[m].size, matrices_[m].keep) : Window{};
        search.warm = search.done = false;
        search.missed = true;
        return;
      case Position::kHigh:
        key = search.window.high;
        break;
      case Position::kLow:
        key = search.window.low;
        break;
      case Position::kInside: {
        std::vector<int32_t> inside;
        inside.reserve(counts.inside);
        for (int64_t p = search.first_piece; p < search.last_piece; ++p) {
          inside.insert(inside.end(), pieces_[p].inside.begin(), pieces_[p].inside.end());
        }
        key = select(inside, rank);
        for (int64_t p = search.first_piece; p < search.last_piece; ++p) {
          const std::vector<int32_t>& keys = pieces_[p].inside;
          rank -= std::count_if(keys.begin(), keys.end(), [key](int32_t other) { return other > key; });
        }
      }
    }
    // From here on `rank` is the number of ties to keep.
    threshold.value = value_of(key);
    threshold.cut = position_of_tie(m, key, rank) + 1;
  }

  bool crowded(const Search& search) const {
    const auto first = pieces_.begin() + search.first_piece, last = pieces_.begin() + search.last_piece;
    return std::any_of(first, last, [](const Piece& piece) { return piece.crowded(); });
  }

  int64_t position_of_tie(int64_t m, int32_t key, int64_t rank) const {
    const Search& search = searches_[m];
    for (int64_t p = search.first_piece; p < search.last_piece; ++p) {
      const Piece& piece = pieces_[p];
      const int64_t ties = key == search.window.high  ? piece.counts.at_high
                           : key == search.window.low ? piece.counts.at_low
                                                      : std::count(piece.inside.begin(), piece.inside.end(), key);
      if (rank > ties) {
        rank -= ties;
        continue;
      }
      for (int64_t i = piece.begin; i < piece.end; ++i) {
        if (key_of<source>(load(data(m) + i)) == key && --rank == 0) return i;
      }
    }
    return -1;  // not reached, as the counts include the tie
  }

  const ScoreMatrix* matrices_;
  Threshold* thresholds_;
  std::vector<Search> searches_;
  std::vector<Piece> pieces_;
};

}  // namespace tamt
