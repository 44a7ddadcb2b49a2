// The Python module tamt_kernels._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/instruction_set.h"
#include "operations.h"

namespace tamt {
namespace {

// Called once by tamt_kernels, after it has checked that this was built for the torch that runs. The operators are
// defined, with their plain-torch kernels, in Python.
void register_kernels() {
  static torch::Library cpu = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CPU);
  cpu.impl("topk_threshold", &topk_threshold_cpu);
  cpu.impl("topk_threshold_unchecked", &topk_threshold_unchecked_cpu);
  cpu.impl("gradient_norm", &gradient_norm_cpu);
  cpu.impl("mask_adamw", &mask_adamw_cpu);
  cpu.impl("binarize", &binarize_cpu);
  cpu.impl("pack_mask", &pack_mask_cpu);
  cpu.impl("unpack_mask", &unpack_mask_cpu);
  cpu.impl("mask_weight", &mask_weight_cpu);
  cpu.impl("mask_weights", &mask_weights_cpu);
  cpu.impl("ste_backward", &ste_backward_cpu);
  cpu.impl("ste_backward_into", &ste_backward_into_cpu);
  cpu.impl("masked_embedding", &masked_embedding_cpu);
  cpu.impl("masked_embedding_backward", &masked_embedding_backward_cpu);
#ifdef TAMT_WITH_CUDA
  static torch::Library cuda = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CUDA);
  cuda.impl("ste_backward", &ste_backward_cuda);
  cuda.impl("ste_backward_into", &ste_backward_into_cuda);
#endif
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
}
