// The CPU kernels: plain functions on memory that do not use torch. Each is defined in <operation>_kernel.cpp and
// called by the launcher in <operation>.cpp. tamt_kernels/reference.py defines their results.
#pragma once

#include <cstdint>
#include <functional>

#include "../types.h"
#include "sparse_matrix.h"

namespace tamt {

// For the entries from `begin` to `end`. An entry is kept if score > value, or score = value and index < cut.
void mask_weight_kernel(
    const void* weight, Type weight_type, const float* score, float value, int64_t cut, bool absolute, void* out,
    Type out_type, int64_t begin, int64_t end);

void binarize_kernel(
    const float* score, float value, int64_t cut, bool absolute, bool* mask, int64_t begin, int64_t end);

// n of each m neighbours are kept: those of largest score, ties broken by lower index. A score that is NaN ranks like
// minus infinity.
struct Pattern {
  int64_t n, m;
};

constexpr int64_t kLongestGroup = 16;

// For the entries from `begin` to `end`, which are whole groups.
void pattern_mask_kernel(const float* score, Pattern pattern, bool absolute, bool* mask, int64_t begin, int64_t end);
void pattern_weight_kernel(
    const void* weight, Type weight_type, const float* score, Pattern pattern, bool absolute, void* out, Type out_type,
    int64_t begin, int64_t end);

struct SteOptions {
  bool add = false;     // whether to add the product to `out`
  bool square = false;  // whether to return the sum of squares; otherwise the kernel returns 0
};

// Returns the sum of the squares of the entries of `out`.
double ste_backward_kernel(
    const void* grad_masked_weight, Type grad_type, const void* weight, Type weight_type, void* out, Type out_type,
    int64_t begin, int64_t end, SteOptions options);

// Packs the mask of the entries from `begin`, a multiple of 8, to `end`; the first byte is packed[begin / 8].
void pack_kept_kernel(
    const float* score, float value, int64_t cut, bool absolute, uint8_t* packed, int64_t begin, int64_t end);

// For the bytes from `begin` to `end` of the packed mask of `size` entries.
void pack_mask_kernel(const bool* mask, int64_t size, uint8_t* packed, int64_t begin, int64_t end);
void unpack_mask_kernel(const uint8_t* packed, bool* mask, int64_t size, int64_t begin, int64_t end);

// Zeroes entries whose bit is 0, for the bytes from `begin` to `end` of the packed mask of `size` entries.
void prune_kernel(void* entries, Type type, const uint8_t* packed, int64_t size, int64_t begin, int64_t end);

// Rows of W ⊙ m, with `columns` entries, for the look-ups from `begin` to `end`. Look-up i is row ids[i] of the weight,
// with the scores in row score_rows[i] of `score`.
void masked_embedding_kernel(
    const int64_t* ids, const int64_t* score_rows, const void* weight, Type type, const float* score, float value,
    int64_t cut, bool absolute, void* out, int64_t columns, int64_t begin, int64_t end);

// One row of the gradient: the sum of the `count` rows `lookups` of `grad_output`, times the weight's row.
void masked_embedding_backward_kernel(
    const void* grad_output, Type grad_type, const int64_t* lookups, int64_t count, const void* weight_row,
    Type weight_type, void* out_row, Type out_type, int64_t columns);

// For the rows from `begin` to `end`, with `columns` entries: the cosine of two rows, and the gradient of the trained
// one, which has the trained one's type.
void cosine_kernel(
    const void* constant, Type constant_type, const void* trained, Type trained_type, float* cosine, int64_t columns,
    int64_t begin, int64_t end);
void cosine_backward_kernel(
    const float* grad_cosine, const void* constant, Type constant_type, const void* trained, Type trained_type,
    void* grad, int64_t columns, int64_t begin, int64_t end);

// Runs task(0) … task(count - 1) on several threads, in any order.
using Parallel = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

// Rows of so many columns, one after another.
struct Matrix {
  const void* data;
  Type type;
  int64_t rows, columns;
};

// y [tokens][rows of the weight] = x [tokens][its columns] Wᵀ + bias, which may be null. x has the type of the weight's
// values; y that or float.
void sparse_linear_kernel(
    const Matrix& x, const SparseMatrix& weight, const float* bias, void* y, Type y_type, const Parallel& parallel,
    int64_t threads);

// dW at the kept entries, the sums over tokens of dY [tokens][rows] and X [tokens][columns], both float.
void sparse_linear_backward_values_kernel(
    const Matrix& grad_output, const Matrix& x, const SparseMatrix& pattern, float* grad_values,
    const Parallel& parallel);

// Rows of W for the look-ups from `begin` to `end`.
void sparse_embedding_kernel(const int64_t* ids, const SparseMatrix& weight, void* out, int64_t begin, int64_t end);

// Of one row of the pattern, the kept entries' gradient, in place: the sums of those `count` rows of `grad_output` that
// `lookups` names. It has the type of `grad_output`.
void sparse_embedding_backward_kernel(
    const Matrix& grad_output, const int64_t* lookups, int64_t count, const SparseMatrix& pattern, int64_t row,
    void* grad_values);

struct ScoreMatrix {
  const float* score;
  int64_t size;
  int64_t keep;
  float last;  // a threshold that may be near, or NaN for none
};

struct Threshold {
  float value = 0;  // NaN if the matrix has NaN entries
  int64_t cut = 0;
  bool has_nan = false;
};

void topk_threshold_kernel(
    const ScoreMatrix* matrices, int64_t count, bool absolute, Threshold* thresholds, const Parallel& parallel);

// A gradient and the weight that it is multiplied by.
struct GradientMatrix {
  const void* grad;
  Type grad_type;
  const void* weight;
  Type weight_type;
  int64_t size;
};

// The norm of grad ⊙ weight over all matrices. It does not depend on the number of threads.
float gradient_norm_kernel(const GradientMatrix* matrices, int64_t count, const Parallel& parallel);

struct AdamWMatrix {
  GradientMatrix gradient;
  float *score, *mean, *square;
  void* masked;  // null to write no masked weight
  Type masked_type;
  int64_t keep = 0;
  // If the gradient holds only some rows, of `columns` entries: for each row of the matrix the number of its row in the
  // gradient; negative if its gradient is zero, kNoMoments if its moments are zero as well. Null if the gradient is
  // whole.
  const int32_t* grad_rows = nullptr;
  int64_t columns = 0;
};

constexpr int32_t kNoMoments = -2;

struct AdamWRates {
  float factor, step_size, root, decay;
  double beta1, beta2, eps;
};

// Replaces numbers by torch's square roots. torch calls MKL, whose AVX-512 code rounds one root in 150 differently from
// the processor's instruction.
using TakeRoots = std::function<void(float* numbers, int64_t size)>;

// A step for all scores. With `renew` it also writes the new `thresholds` and masked weights. If the factor is not
// finite nothing changes, except that masked weights that were overwritten by their gradients are written again.
void mask_adamw_kernel(
    const AdamWMatrix* matrices, int64_t count, const AdamWRates& rates, bool renew, bool absolute,
    Threshold* thresholds, const TakeRoots& take_roots, const Parallel& parallel);

// The same with masks of a pattern, which need no thresholds.
void pattern_adamw_kernel(
    const AdamWMatrix* matrices, int64_t count, const AdamWRates& rates, Pattern pattern, bool absolute,
    const TakeRoots& take_roots, const Parallel& parallel);

}  // namespace tamt
