// An operator that asks what kernels ask.
#include <torch/csrc/stable/library.h>

#include "cuda/tf32.h"

static bool asked(bool convolution) { return tnt_kernels::cuda::allows_tf32(convolution); }

STABLE_TORCH_LIBRARY(tnt_kernels_cpp_test, m) { m.def("asked(bool convolution) -> bool"); }

STABLE_TORCH_LIBRARY_IMPL(tnt_kernels_cpp_test, CompositeExplicitAutograd, m) {
  m.impl("asked", TORCH_BOX(&asked));
}
