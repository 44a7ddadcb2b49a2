// The Python module tamt_kernels._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/reusing_allocator.h"
#include "operations.h"

namespace tamt {
namespace {

// Registers the kernels of a device for operators that Python defines: all kernels in the library tamt_kernels_cpp, and
// in tamt_kernels those of operators that do not choose among several kernels.
auto adder(torch::Library& all, torch::Library& library, const std::set<std::string>& choosing) {
  return [&](const char* name, auto kernel) {
    all.impl(name, kernel);
    if (choosing.count(name) == 0) library.impl(name, kernel);
  };
}

void register_cpu_kernels(const std::set<std::string>& choosing) {
  static torch::Library all = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels_cpp, CPU);
  static torch::Library library = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CPU);
  const auto add = adder(all, library, choosing);
  add("topk_threshold", &topk_threshold_cpu);
  add("topk_threshold_unchecked", &topk_threshold_unchecked_cpu);
  add("gradient_norm", &gradient_norm_cpu);
  add("mask_adamw", &mask_adamw_cpu);
  add("pattern_adamw", &pattern_adamw_cpu);
  add("pattern_mask", &pattern_mask_cpu);
  add("pattern_weight", &pattern_weight_cpu);
  add("binarize", &binarize_cpu);
  add("pack_mask", &pack_mask_cpu);
  add("unpack_mask", &unpack_mask_cpu);
  add("prune_", &prune_cpu);
  add("mask_weight", &mask_weight_cpu);
  add("mask_weights", &mask_weights_cpu);
  add("ste_backward", &ste_backward_cpu);
  add("ste_backward_all", &ste_backward_all_cpu);
  add("ste_backward_into", &ste_backward_into_cpu);
  add("masked_embedding", &masked_embedding_cpu);
  add("masked_embedding_backward", &masked_embedding_backward_cpu);
  add("cosine", &cosine_cpu);
  add("cosine_backward", &cosine_backward_cpu);
  add("sparse_linear", &sparse_linear_cpu);
  add("sparse_linear_backward_x", &sparse_linear_backward_x_cpu);
  add("sparse_linear_backward_values", &sparse_linear_backward_values_cpu);
  add("sparse_embedding", &sparse_embedding_cpu);
  add("sparse_embedding_backward", &sparse_embedding_backward_cpu);
}

void register_cuda_kernels([[maybe_unused]] const std::set<std::string>& choosing) {
#ifdef TAMT_WITH_CUDA
  static torch::Library all = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels_cpp, CUDA);
  static torch::Library library = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CUDA);
  const auto add = adder(all, library, choosing);
  add("ste_backward", &ste_backward_cuda);
  add("ste_backward_into", &ste_backward_into_cuda);
#endif
}

// For every device, as they call operators, whichever kernel runs these.
void register_gradients() {
  static torch::Library cpu = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, AutogradCPU);
  static torch::Library cuda = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, AutogradCUDA);
  for (torch::Library* library : {&cpu, &cuda}) {
    library->impl("mask_weight", &mask_weight_autograd);
    library->impl("masked_embedding", &masked_embedding_autograd);
  }
}

// tamt_kernels calls this once, after it has checked that the extension was built for the running torch. `operators`
// are those that choose among several kernels.
void register_kernels(const pybind11::args& operators) {
  std::set<std::string> choosing;
  for (const auto& name : operators) choosing.insert(name.cast<std::string>());
  register_cpu_kernels(choosing);
  register_cuda_kernels(choosing);
  register_gradients();
}

constexpr std::array kInstructionSets{"generic", "avx2", "avx512"};

std::string name_of(InstructionSet set) { return kInstructionSets[static_cast<size_t>(set)]; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (int set = 0; set <= static_cast<int>(best_instruction_set()); ++set) {
    names.push_back(name_of(static_cast<InstructionSet>(set)));
  }
  return names;
}

// For tests of instruction sets that this machine would not choose.
void use_instruction_set(const std::string& name) {
  const auto names = instruction_sets();
  const auto position = std::find(names.begin(), names.end(), name);
  if (position == names.end()) throw std::invalid_argument("this machine has no instruction set " + name);
  instruction_set = static_cast<InstructionSet>(position - names.begin());
}

}  // namespace
}  // namespace tamt

PYBIND11_MODULE(_C, module) {
  module.doc() = "The compiled kernels of tamt_kernels.";
  module.attr("torch_version") = TAMT_TORCH_VERSION;
#ifdef TAMT_WITH_CUDA
  module.attr("cuda") = true;
#else
  module.attr("cuda") = false;
#endif
  module.def("instruction_set", [] { return tamt::name_of(tamt::instruction_set); });
  module.def("instruction_sets", &tamt::instruction_sets);
  module.def("use_instruction_set", &tamt::use_instruction_set);
  module.def("register_kernels", &tamt::register_kernels);
  module.def("reuse_freed_memory", &tamt::reuse_freed_memory);
}
