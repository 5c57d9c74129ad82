// The functions of cpu/simd.h over arrays, a multiple of 16 long.
#pragma once

#include <stdint.h>

namespace tnt_kernels::cpu {

struct SimdMath {
  void (*exp2_nonpositive)(const float* x, float* y, int64_t n);
  void (*gelu)(const float* x, float* y, int64_t n);
  void (*gelu_and_slope)(const float* x, float* y, float* slope, int64_t n);
};

// Each defined by simd_math_isa.cpp, compiled with the flags of that instruction set.
namespace generic {
SimdMath simd_math();
}
namespace avx2 {
SimdMath simd_math();
}
namespace avx512 {
SimdMath simd_math();
}

}  // namespace tnt_kernels::cpu
