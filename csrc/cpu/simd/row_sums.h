// The sums of kLanes vectors at once: a fraction of the shuffles of summing each by itself.
#pragma once

#include "cpu/simd.h"

namespace tnt_kernels::cpu::TNT_ISA {

// Lane i of the result is the sum of the lanes of rows[i * kLanes ...].
TNT_INLINE Vec sum_each(const float* rows) {
  constexpr int kQuads = kLanes / 4;
  Vec part[kQuads];  // part[k]: in 128-bit group g, what group g of rows 4k ... 4k + 3 adds
#pragma GCC unroll 4
  for (int k = 0; k < kQuads; ++k) {
    const float* quad = rows + 4 * k * kLanes;
    Vec a = load(quad), b = load(quad + kLanes);
    Vec c = load(quad + 2 * kLanes), d = load(quad + 3 * kLanes);
    transpose_quads(a, b, c, d);
    part[k] = (a + b) + (c + d);
  }
#if defined(TNT_SIMD_AVX512)
  transpose_groups(part[0], part[1], part[2], part[3]);
  return (part[0] + part[1]) + (part[2] + part[3]);
#elif defined(TNT_SIMD_AVX2)
  return _mm256_permute2f128_ps(part[0], part[1], 0x20) +
         _mm256_permute2f128_ps(part[0], part[1], 0x31);
#else
  return part[0];
#endif
}

}  // namespace tnt_kernels::cpu::TNT_ISA
