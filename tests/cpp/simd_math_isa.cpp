#include "cpu/simd.h"
#include "simd_math.h"

namespace tnt_kernels::cpu::TNT_ISA {

static void exp2_nonpositive_array(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, exp2_nonpositive(load(x + i)));
}

static void gelu_array(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, gelu(load(x + i)));
}

static void gelu_and_slope_array(const float* x, float* y, float* slope, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec slopes;
    store(y + i, gelu_and_slope(load(x + i), slopes));
    store(slope + i, slopes);
  }
}

SimdMath simd_math() { return {exp2_nonpositive_array, gelu_array, gelu_and_slope_array}; }

}  // namespace tnt_kernels::cpu::TNT_ISA
