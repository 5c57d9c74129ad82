// Element types of tensors, as the CPU kernels see them. No torch header: kernels include this.
#pragma once

#include <stdint.h>

namespace tnt_kernels::cpu {

// Storage only; arithmetic is always fp32.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
constexpr int kNumDTypes = 3;

constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace tnt_kernels::cpu
