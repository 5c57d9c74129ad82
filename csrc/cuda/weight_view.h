// Weights as the caller holds them: plain data, for host and device.
#pragma once

#include <cstdint>

namespace tnt_kernels::cuda {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Any strides (counted in elements); null if absent.
struct WeightView {
  const void* data;
  int64_t stride[2];
  DType type;
};

}  // namespace tnt_kernels::cuda
