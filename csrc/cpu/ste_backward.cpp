#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../operations.h"
#include "kernels.h"

namespace tamt {
namespace {

// Squares are summed in blocks of a fixed size, and the blocks in order: the same bits for any number of threads.
constexpr int64_t kBlock = kGrain;

double multiply(const at::Tensor& grad, const at::Tensor& weight, at::Tensor& out, SteOptions options) {
  const at::Tensor g = grad.contiguous(), w = weight.contiguous();
  const int64_t size = w.numel(), blocks = (size + kBlock - 1) / kBlock;
  std::vector<double> squares(blocks);
  void* const data = out.mutable_data_ptr();  // before the loop, because a copy-on-write tensor is copied here
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      squares[i] = ste_backward_kernel(
          g.const_data_ptr(), type_of(g), w.const_data_ptr(), type_of(w), data, type_of(out),
          i * kBlock, std::min(size, (i + 1) * kBlock), options);
    }
  });
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

}  // namespace

at::Tensor ste_backward_cpu(
    const at::Tensor& grad_masked_weight, const at::Tensor& weight, std::optional<at::ScalarType> dtype) {
  const at::ScalarType promoted = at::promoteTypes(grad_masked_weight.scalar_type(), weight.scalar_type());
  at::Tensor out = weight.new_empty(weight.sizes(), dtype.value_or(promoted));
  multiply(grad_masked_weight, weight, out, {});
  return out;
}

at::Tensor ste_backward_all_cpu(
    const std::vector<at::Tensor>& grads, const std::vector<at::Tensor>& weights, at::ScalarType dtype) {
  int64_t total = 0, offset = 0;
  for (const at::Tensor& weight : weights) total += padded(weight.numel());
  at::Tensor products = weights[0].new_empty({total}, dtype);
  for (size_t m = 0; m < weights.size(); ++m) {
    const int64_t size = weights[m].numel();
    at::Tensor product = products.narrow(0, offset, size);
    multiply(grads[m], weights[m], product, {});
    products.narrow(0, offset + size, padded(size) - size).zero_();
    offset += padded(size);
  }
  return products;
}

at::Tensor ste_backward_into_cpu(
    at::Tensor& grad_score, const at::Tensor& grad_masked_weight, const at::Tensor& weight, bool add, bool square) {
  at::Tensor out = grad_score.contiguous();
  const double squares = multiply(grad_masked_weight, weight, out, {add, square});
  if (!out.is_same(grad_score)) grad_score.copy_(out);
  at::Tensor sum = weight.new_empty(square ? at::IntArrayRef{} : at::IntArrayRef{0}, at::kFloat);
  if (square) sum.fill_(static_cast<float>(squares));  // may be infinite, as in the definition
  return sum;
}

}  // namespace tamt
