// Vectors whose lanes alternate between the two members of a pair.
#pragma once

#include "cpu/simd.h"

namespace tnt_kernels::cpu::TNT_ISA {

#if defined(TNT_SIMD_AVX512)

// {even, odd, even, odd, ...}; splat_pair(p), of two neighbours, is in simd/avx512.h
TNT_INLINE Vec splat_pair(const float* even, const float* odd) {
  return _mm512_mask_broadcastss_ps(_mm512_set1_ps(*even), 0xaaaa, _mm_load_ss(odd));
}
// {even, 0, even, 0, ...}
TNT_INLINE Vec splat_even(const float* even) {
  return _mm512_maskz_broadcastss_ps(0x5555, _mm_load_ss(even));
}
// {a0 + a1, a2 + a3, ..., b0 + b1, ...}
TNT_INLINE Vec sum_pairs(Vec a, Vec b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return _mm512_permutex2var_ps(a, even, b) + _mm512_permutex2var_ps(a, odd, b);
}
// low = {a0, a0, a1, a1, ...}, high goes on from the middle of a.
TNT_INLINE void repeat_pairs(Vec a, Vec& low, Vec& high) {
  const __m512i index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  low = _mm512_permutex2var_ps(a, index, a);
  high = _mm512_permutex2var_ps(a, _mm512_add_epi32(index, _mm512_set1_epi32(8)), a);
}

#elif defined(TNT_SIMD_AVX2)

TNT_INLINE Vec splat_pair(const float* p) {
  double pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm256_castpd_ps(_mm256_set1_pd(pair));
}
TNT_INLINE Vec splat_pair(const float* even, const float* odd) {
  return _mm256_blend_ps(_mm256_broadcast_ss(even), _mm256_broadcast_ss(odd), 0xaa);
}
TNT_INLINE Vec splat_even(const float* even) {
  return _mm256_blend_ps(_mm256_broadcast_ss(even), _mm256_setzero_ps(), 0xaa);
}
TNT_INLINE Vec sum_pairs(Vec a, Vec b) {
  const __m256d mixed = _mm256_castps_pd(_mm256_hadd_ps(a, b));  // quarters a b a b
  return _mm256_castpd_ps(_mm256_permute4x64_pd(mixed, 0xd8));
}
TNT_INLINE void repeat_pairs(Vec a, Vec& low, Vec& high) {
  const Vec inner_low = _mm256_unpacklo_ps(a, a), inner_high = _mm256_unpackhi_ps(a, a);
  low = _mm256_permute2f128_ps(inner_low, inner_high, 0x20);
  high = _mm256_permute2f128_ps(inner_low, inner_high, 0x31);
}

#else

TNT_INLINE Vec splat_pair(const float* p) { return Vec{p[0], p[1], p[0], p[1]}; }
TNT_INLINE Vec splat_pair(const float* even, const float* odd) {
  return Vec{*even, *odd, *even, *odd};
}
TNT_INLINE Vec splat_even(const float* even) { return Vec{*even, 0, *even, 0}; }
TNT_INLINE Vec sum_pairs(Vec a, Vec b) {
  return Vec{a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]};
}
TNT_INLINE void repeat_pairs(Vec a, Vec& low, Vec& high) {
  low = Vec{a[0], a[0], a[1], a[1]};
  high = Vec{a[2], a[2], a[3], a[3]};
}

#endif

}  // namespace tnt_kernels::cpu::TNT_ISA
