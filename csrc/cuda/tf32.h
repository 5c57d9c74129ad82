// Whether products of fp32 tensors may be in TF32: PyTorch's setting of this moment.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

namespace tnt_kernels::cuda {

// Asks an operator of tnt_kernels/library.py, since the stable interface knows no settings; a
// compiled graph runs none of our Python before it calls the op. Matrix products and convolutions
// have settings of their own.
inline bool allows_tf32(bool convolution) {
  std::array<StableIValue, 1> stack = {torch::stable::detail::from(convolution)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("tnt_kernels::allows_tf32", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<bool>(stack[0]);
}

}  // namespace tnt_kernels::cuda
