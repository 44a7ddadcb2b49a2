// Runs every CPU kernel, as compiled for each instruction set of this machine, on memory of exactly its size. Built with
// the kernels under AddressSanitizer and UBSan by test_sanitizers.py, which fails on their first report. What the kernels
// compute is tested elsewhere.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <utility>

#include "../../csrc/cpu/convert.h"
#include "../../csrc/cpu/instruction_set.h"
#include "../../csrc/cpu/kernels.h"

namespace {

using namespace tamt;

// Around a vector, a block, a sample, a piece.
constexpr int64_t kSizes[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1023, 1025, 4095, 4097, 16385, 32769};
constexpr const char* kNames[] = {"generic", "avx2", "avx512"};
constexpr Type kTypes[] = {Type::kFloat, Type::kHalf, Type::kBFloat16};

std::mt19937_64 generator(0);

int64_t up_to(int64_t last) { return std::uniform_int_distribution<int64_t>(0, last)(generator); }

void in_order(int64_t count, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

void take_roots(float* numbers, int64_t size) {
  for (int64_t i = 0; i < size; ++i) numbers[i] = std::sqrt(numbers[i]);
}

// Entries that end where their memory does, and begin up to 15 entries behind its beginning: aligned to no vector.
template <typename Element>
class Array {
 public:
  explicit Array(int64_t size) : offset_(up_to(15)), memory_(new Element[offset_ + size]()), size_(size) {}

  Element* data() { return memory_.get() + offset_; }
  int64_t size() const { return size_; }

 private:
  int64_t offset_;
  std::unique_ptr<Element[]> memory_;
  int64_t size_;
};

// As in training, many are tied; some are infinite, denormal, -0 or NaN.
Array<float> numbers(int64_t size, bool nan = true) {
  Array<float> array(size);
  std::normal_distribution<float> normal;
  const float rare[] = {0.0f, -0.0f, 0.02f, 1e-42f, INFINITY, -INFINITY, nan ? NAN : 0.02f};
  for (int64_t i = 0; i < size; ++i) array.data()[i] = up_to(3) > 0 ? normal(generator) : rare[up_to(6)];
  return array;
}

// Of any type, by its bytes.
class Entries {
 public:
  Entries(int64_t size, Type type) : floats_(0), halves_(0), type_(type) {
    Array<float> source = numbers(size);
    if (type == Type::kFloat) {
      floats_ = std::move(source);
      return;
    }
    halves_ = Array<uint16_t>(size);
    for (int64_t i = 0; i < size; ++i) {
      const float number = source.data()[i];
      halves_.data()[i] = type == Type::kHalf ? from_float<Half>(number).bits : from_float<BFloat16>(number).bits;
    }
  }

  void* data() { return type_ == Type::kFloat ? static_cast<void*>(floats_.data()) : halves_.data(); }
  Type type() const { return type_; }

 private:
  Array<float> floats_;
  Array<uint16_t> halves_;
  Type type_;
};

void run_masks(int64_t size) {
  Array<float> score = numbers(size);
  for (const bool absolute : {false, true}) {
    const float value = up_to(1) ? 0.02f : 0.3f;
    const int64_t cut = up_to(size + 20) - 10;
    Array<bool> mask(size), unpacked(size);
    Array<uint8_t> packed((size + 7) / 8);
    binarize_kernel(score.data(), value, cut, absolute, mask.data(), 0, size);
    pack_kept_kernel(score.data(), value, cut, absolute, packed.data(), 0, size);
    pack_mask_kernel(mask.data(), size, packed.data(), 0, packed.size());
    unpack_mask_kernel(packed.data(), unpacked.data(), size, 0, packed.size());
    for (const Type type : kTypes) {
      Entries pruned(size, type);
      prune_kernel(pruned.data(), type, packed.data(), size, 0, packed.size());
      for (const Type out_type : kTypes) {
        Entries weight(size, type), out(size, out_type);
        mask_weight_kernel(weight.data(), type, score.data(), value, cut, absolute, out.data(), out_type, 0, size);
      }
    }
  }
}

void run_gradients(int64_t size) {
  for (const Type grad_type : kTypes) {
    for (const Type type : kTypes) {
      Entries grad(size, grad_type), weight(size, type);
      for (const Type out_type : kTypes) {
        Entries out(size, out_type);
        const SteOptions options{up_to(1) == 1, up_to(1) == 1};
        ste_backward_kernel(grad.data(), grad_type, weight.data(), type, out.data(), out_type, 0, size, options);
      }
      const GradientMatrix matrix{grad.data(), grad_type, weight.data(), type, size};
      gradient_norm_kernel(&matrix, 1, in_order);
    }
  }
}

void run_embedding(int64_t columns) {
  Array<int64_t> lookups(up_to(4));
  const int64_t rows = 5;
  for (int64_t i = 0; i < lookups.size(); ++i) lookups.data()[i] = up_to(rows - 1);
  for (const Type type : kTypes) {
    Entries grad(rows * columns, type), weight(columns, type), out(columns, type);
    masked_embedding_backward_kernel(
        grad.data(), type, lookups.data(), lookups.size(), weight.data(), type, out.data(), type, columns);
    Entries whole(rows * columns, type), looked_up(lookups.size() * columns, type);
    Array<float> score = numbers(rows * columns);
    masked_embedding_kernel(
        lookups.data(), lookups.data(), whole.data(), type, score.data(), 0.01f, up_to(rows * columns), up_to(1) == 1,
        looked_up.data(), columns, 0, lookups.size());
  }
}

void run_cosine(int64_t columns) {
  const int64_t rows = up_to(4);
  Array<float> cosine(rows), grad_cosine = numbers(rows);
  for (const Type constant_type : kTypes) {
    for (const Type type : kTypes) {
      Entries constant(rows * columns, constant_type), trained(rows * columns, type), grad(rows * columns, type);
      cosine_kernel(constant.data(), constant_type, trained.data(), type, cosine.data(), columns, 0, rows);
      cosine_backward_kernel(
          grad_cosine.data(), constant.data(), constant_type, trained.data(), type, grad.data(), columns, 0, rows);
    }
  }
}

int64_t some_keep(int64_t size) {
  const int64_t choices[] = {0, size, up_to(size)};
  return choices[up_to(2)];
}

void run_thresholds(int64_t size) {
  for (const bool absolute : {false, true}) {
    for (const bool nan : {false, true}) {
      Array<float> first = numbers(size, nan), second = numbers(size / 2, false);
      for (int turn = 0; turn < 4; ++turn) {
        const float last = turn < 2 ? NAN : up_to(1) ? 0.02f : 0.5f;
        const ScoreMatrix matrices[] = {
            {first.data(), size, some_keep(size), last}, {second.data(), size / 2, some_keep(size / 2), NAN}};
        Threshold thresholds[2];
        topk_threshold_kernel(matrices, 2, absolute, thresholds, in_order);
      }
    }
  }
}

void run_adamw(int64_t size) {
  for (const Type type : kTypes) {
    const bool absolute = up_to(1) == 1;
    Entries grad(size, type), weight(size, kTypes[up_to(2)]), masked(size, kTypes[up_to(2)]);
    Array<float> score = numbers(size, false), mean(size), square(size);
    const AdamWMatrix matrix{
        {grad.data(), type, weight.data(), weight.type(), size}, score.data(), mean.data(), square.data(),
        up_to(3) ? masked.data() : nullptr, masked.type(), some_keep(size)};
    Threshold threshold{up_to(1) ? NAN : 0.02f, up_to(size), false};
    for (int step = 0; step < 4; ++step) {
      const AdamWRates rates{0.5f, 1e-3f, 1.0f, 1.0f, 0.9, 0.999, 1e-8};
      mask_adamw_kernel(&matrix, 1, rates, step % 3 < 2, absolute, &threshold, take_roots, in_order);
    }
  }
}

void run_patterns() {
  for (const Pattern pattern : {Pattern{1, 2}, Pattern{2, 4}, Pattern{3, 7}, Pattern{15, 16}}) {
    const int most = pattern.m == 16 ? 17'000 : 1'000;  // more than a piece, once
    for (const int64_t groups : {0, 1, 3, 64, 300, most}) {
      const int64_t size = groups * pattern.m;
      const bool absolute = up_to(1) == 1;
      const Type type = kTypes[up_to(2)];
      Entries grad(size, type), weight(size, kTypes[up_to(2)]), masked(size, kTypes[up_to(2)]);
      Array<float> score = numbers(size), mean(size), square(size);
      Array<bool> mask(size);
      pattern_mask_kernel(score.data(), pattern, absolute, mask.data(), 0, size);
      pattern_weight_kernel(
          weight.data(), weight.type(), score.data(), pattern, absolute, masked.data(), masked.type(), 0, size);
      const AdamWMatrix matrix{
          {grad.data(), type, weight.data(), weight.type(), size}, score.data(), mean.data(), square.data(),
          up_to(3) ? masked.data() : nullptr, masked.type()};
      const AdamWRates rates{0.5f, 1e-3f, 1.0f, 1.0f, 0.9, 0.999, 1e-8};
      pattern_adamw_kernel(&matrix, 1, rates, pattern, absolute, take_roots, in_order);
    }
  }
}

// A random pattern of so many rows and columns, of which `most` of 10 are kept in the fullest cells.
OwnSparseMatrix sparse_matrix(int64_t rows, int64_t columns, int64_t most, Type type) {
  OwnSparseMatrix matrix{rows, columns, type, {}, {}, {}, {}, {0}};
  for (int64_t row = 0; row < rows; row += kCell) {
    for (int64_t column = 0; column < columns; column += kCell) {
      int64_t last = kCell;  // counts fall
      for (int64_t i = 0; i < kCell; ++i) {
        matrix.order.push_back(static_cast<uint8_t>(i));
        const int64_t before = matrix.column.size(), chance = up_to(most);
        for (int64_t c = 0; i < rows - row && c < std::min(kCell, columns - column); ++c) {
          const int64_t count = static_cast<int64_t>(matrix.column.size()) - before;
          if (count < last && up_to(9) < chance) matrix.column.push_back(static_cast<uint8_t>(c));
        }
        last = static_cast<int64_t>(matrix.column.size()) - before;
        matrix.counts.push_back(static_cast<uint8_t>(last));
      }
      matrix.starts.push_back(matrix.column.size());
    }
  }
  const int64_t bytes = matrix.column.size() * (type == Type::kFloat ? 4 : 2);
  Entries values(matrix.column.size(), type);
  const auto* first = static_cast<const uint8_t*>(values.data());
  matrix.values.assign(first, first + bytes);
  matrix.column.shrink_to_fit();
  matrix.values.shrink_to_fit();
  return matrix;
}

void run_sparse(int64_t tokens, int64_t rows, int64_t columns, Type type) {
  const OwnSparseMatrix matrix = sparse_matrix(rows, columns, up_to(10), type);
  const OwnSparseMatrix other = transposed(matrix.view(), in_order);
  Entries x(tokens * columns, type), y(tokens * rows, type), wide(tokens * rows, Type::kFloat);
  Array<float> bias = numbers(rows), grad = numbers(tokens * rows), input = numbers(tokens * columns);
  Array<float> grad_values(matrix.column.size());
  sparse_linear_kernel({x.data(), type, tokens, columns}, matrix.view(), nullptr, y.data(), type, in_order, 1);
  sparse_linear_kernel(
      {x.data(), type, tokens, columns}, matrix.view(), bias.data(), wide.data(), Type::kFloat, in_order, 1);
  sparse_linear_kernel({y.data(), type, tokens, rows}, other.view(), nullptr, x.data(), type, in_order, 1);
  sparse_linear_backward_values_kernel(
      {grad.data(), Type::kFloat, tokens, rows}, {input.data(), Type::kFloat, tokens, columns}, matrix.view(),
      grad_values.data(), in_order);
  Array<int64_t> ids(tokens);
  for (int64_t i = 0; i < tokens; ++i) ids.data()[i] = up_to(rows - 1);
  Entries looked_up(tokens * columns, type), grad_rows(matrix.column.size(), type);
  sparse_embedding_kernel(ids.data(), matrix.view(), looked_up.data(), 0, tokens);
  const int64_t lookups[] = {tokens - 1, 0};
  sparse_embedding_backward_kernel(
      {looked_up.data(), type, tokens, columns}, lookups, 2, matrix.view(), rows - 1, grad_rows.data());
}

void run_sparse_products() {
  for (const Type type : {Type::kFloat, Type::kBFloat16}) {
    for (const int64_t tokens : {1, 3, 5, 16, 33, 70}) {
      for (const auto& [rows, columns] : {std::pair{1, 1}, {7, 130}, {129, 9}, {140, 257}, {2, 4200}}) {
        run_sparse(tokens, rows, columns, type);
      }
    }
  }
}

}  // namespace

int main() {
  for (int set = 0; set <= static_cast<int>(best_instruction_set()); ++set) {
    instruction_set = static_cast<InstructionSet>(set);
    for (const int64_t size : kSizes) {
      run_masks(size);
      run_gradients(size);
      run_embedding(size);
      run_cosine(size);
      run_thresholds(size);
      run_adamw(size);
    }
    run_patterns();
    run_sparse_products();
    std::printf("every kernel as compiled for %s\n", kNames[set]);
  }
}
