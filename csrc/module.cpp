// The Python module tamt_kernels._C.
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "cpu/instruction_set.h"
#include "operations.h"

namespace tamt {
namespace {

// Called once by tamt_kernels, after it has checked that this was built for the torch that runs. The operators are
// defined, with their plain-torch kernels, in Python.
void register_kernels() {
  static torch::Library cpu = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CPU);
  cpu.impl("topk_threshold", &topk_threshold_cpu);
  cpu.impl("binarize", &binarize_cpu);
  cpu.impl("pack_mask", &pack_mask_cpu);
  cpu.impl("unpack_mask", &unpack_mask_cpu);
  cpu.impl("mask_weight", &mask_weight_cpu);
  cpu.impl("ste_backward", &ste_backward_cpu);
  cpu.impl("masked_embedding", &masked_embedding_cpu);
  cpu.impl("masked_embedding_backward", &masked_embedding_backward_cpu);
#ifdef TAMT_WITH_CUDA
  static torch::Library cuda = MAKE_TORCH_LIBRARY_IMPL(tamt_kernels, CUDA);
  cuda.impl("ste_backward", &ste_backward_cuda);
#endif
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
  module.def("instruction_set", [] { return tamt::has_avx2() ? "avx2" : "generic"; });
  module.def("register_kernels", &tamt::register_kernels);
}
