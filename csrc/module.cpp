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
#include "operations.h"

namespace tamt {
namespace {

// Of the operators that are in the set, or of those that are not. They are defined, with their plain-torch kernels, in
// Python.
void register_cpu_kernels(const std::set<std::string>& operators, bool in_set) {
  static torch::Library library = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CPU);
  const auto add = [&](const char* name, auto kernel) {
    if ((operators.count(name) > 0) == in_set) library.impl(name, kernel);
  };
  add("topk_threshold", &topk_threshold_cpu);
  add("topk_threshold_unchecked", &topk_threshold_unchecked_cpu);
  add("gradient_norm", &gradient_norm_cpu);
  add("mask_adamw", &mask_adamw_cpu);
  add("binarize", &binarize_cpu);
  add("pack_mask", &pack_mask_cpu);
  add("unpack_mask", &unpack_mask_cpu);
  add("prune_", &prune_cpu);
  add("mask_weight", &mask_weight_cpu);
  add("mask_weights", &mask_weights_cpu);
  add("ste_backward", &ste_backward_cpu);
  add("ste_backward_into", &ste_backward_into_cpu);
  add("masked_embedding", &masked_embedding_cpu);
  add("masked_embedding_backward", &masked_embedding_backward_cpu);
}

std::set<std::string> names_of(const pybind11::args& operators) {
  std::set<std::string> names;
  for (const auto& name : operators) names.insert(name.cast<std::string>());
  return names;
}

// Called once by tamt_kernels, after it has checked that this was built for the torch that runs, with the operators that
// run faster on plain torch.
void register_kernels(const pybind11::args& left_out) {
  register_cpu_kernels(names_of(left_out), false);
#ifdef TAMT_WITH_CUDA
  static torch::Library library = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CUDA);
  library.impl("ste_backward", &ste_backward_cuda);
  library.impl("ste_backward_into", &ste_backward_into_cuda);
#endif
}

void register_left_out(const pybind11::args& left_out) { register_cpu_kernels(names_of(left_out), true); }

constexpr std::array kInstructionSets{"generic", "avx2", "avx512"};

std::string name_of(InstructionSet set) { return kInstructionSets[static_cast<size_t>(set)]; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (int set = 0; set <= static_cast<int>(best_instruction_set()); ++set) {
    names.push_back(name_of(static_cast<InstructionSet>(set)));
  }
  return names;
}

// For tests of the loops that this machine would not choose.
void use_instruction_set(const std::string& name) {
  const auto names = instruction_sets();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("this machine has no instruction set " + name);
  instruction_set = static_cast<InstructionSet>(found - names.begin());
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
  module.def("register_left_out", &tamt::register_left_out);
}
