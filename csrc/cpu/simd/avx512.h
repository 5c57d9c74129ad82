// Vec for AVX-512 (F, BW, VL, DQ). See simd.h for what each function means.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own _mm512_undefined_ps
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/gelu_table.h"

namespace tnt_kernels::cpu::TNT_ISA {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kRegisters = 32;

TNT_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

TNT_INLINE Vec zero() { return _mm512_setzero_ps(); }
TNT_INLINE Vec splat(float x) { return _mm512_set1_ps(x); }
// {p[0], p[1], p[0], p[1], ...}
TNT_INLINE Vec splat_pair(const float* p) {
  double pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm512_castpd_ps(_mm512_set1_pd(pair));
}

TNT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
TNT_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
// A NaN in b, the second operand, is kept.
TNT_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
TNT_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
TNT_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
TNT_INLINE Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
TNT_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a); }
TNT_INLINE float largest(Vec a) { return _mm512_reduce_max_ps(a); }
// The first n lanes, zero in the others.
TNT_INLINE Vec keep_n(Vec a, int n) { return _mm512_maskz_mov_ps(first(n), a); }

TNT_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
TNT_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
TNT_INLINE Vec load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
TNT_INLINE void store_n(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }

TNT_INLINE Vec from_bfloat16(__m256i a) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i upper_halves = _mm512_slli_epi32(lane, 16);
  return _mm512_castsi512_ps(
      _mm512_maskz_permutexvar_epi16(0xaaaaaaaau, upper_halves, _mm512_castsi256_si512(a)));
}
// Round to nearest even; a NaN becomes the quiet NaN that PyTorch writes.
TNT_INLINE __m256i to_bfloat16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  rounded = _mm512_mask_add_epi32(rounded, odd, bits, _mm512_set1_epi32(0x8000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  const __m256i upper_halves =
      _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_castsi512_si256(
      _mm512_permutexvar_epi16(_mm512_castsi256_si512(upper_halves), rounded));
}
TNT_INLINE __m256i to_float16(Vec a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }

TNT_INLINE Vec load(const BFloat16* p) {
  return from_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TNT_INLINE void store(BFloat16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(a));
}
TNT_INLINE Vec load_n(const BFloat16* p, int n) {
  return from_bfloat16(_mm256_maskz_loadu_epi16(first(n), p));
}
TNT_INLINE void store_n(BFloat16* p, Vec a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), to_bfloat16(a));
}
TNT_INLINE Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TNT_INLINE void store(Float16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_float16(a));
}
TNT_INLINE Vec load_n(const Float16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
TNT_INLINE void store_n(Float16* p, Vec a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), to_float16(a));
}

// Four floats from each of p, p + stride, p + 2 stride, ...: one 128-bit group after the other.
TNT_INLINE Vec load_quads(const float* p, int64_t stride) {
  __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(p));
  a = _mm512_insertf32x4(a, _mm_loadu_ps(p + stride), 1);
  a = _mm512_insertf32x4(a, _mm_loadu_ps(p + 2 * stride), 2);
  return _mm512_insertf32x4(a, _mm_loadu_ps(p + 3 * stride), 3);
}
TNT_INLINE void store_quads(float* p, int64_t stride, Vec a) {
  _mm_storeu_ps(p, _mm512_castps512_ps128(a));
  _mm_storeu_ps(p + stride, _mm512_extractf32x4_ps(a, 1));
  _mm_storeu_ps(p + 2 * stride, _mm512_extractf32x4_ps(a, 2));
  _mm_storeu_ps(p + 3 * stride, _mm512_extractf32x4_ps(a, 3));
}

// Transposes the 4x4 matrix that each 128-bit group of a, b, c, d holds.
TNT_INLINE void transpose_quads(Vec& a, Vec& b, Vec& c, Vec& d) {
  const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
  const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  a = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
  b = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
  c = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
  d = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
}

// Transposes the 4x4 matrix of 128-bit groups.
TNT_INLINE void transpose_groups(Vec& a, Vec& b, Vec& c, Vec& d) {
  const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x44);   // a0 a1 b0 b1
  const __m512 ab_high = _mm512_shuffle_f32x4(a, b, 0xee);  // a2 a3 b2 b3
  const __m512 cd_low = _mm512_shuffle_f32x4(c, d, 0x44);
  const __m512 cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
  a = _mm512_shuffle_f32x4(ab_low, cd_low, 0x88);  // a0 b0 c0 d0
  b = _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd);
  c = _mm512_shuffle_f32x4(ab_high, cd_high, 0x88);
  d = _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd);
}

TNT_INLINE void transpose(Vec (&m)[16]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) transpose_groups(m[i], m[i + 4], m[i + 8], m[i + 12]);
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) transpose_quads(m[i], m[i + 1], m[i + 2], m[i + 3]);
}

// Transposes an 8x8 matrix of pairs of floats.
TNT_INLINE void transpose_pairs(Vec (&m)[8]) {
  Vec even[4], odd[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(m[2 * i]), b = _mm512_castps_pd(m[2 * i + 1]);
    even[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));  // columns 0, 2, 4, 6 of two rows
    odd[i] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  transpose_groups(even[0], even[1], even[2], even[3]);
  transpose_groups(odd[0], odd[1], odd[2], odd[3]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    m[2 * i] = even[i];
    m[2 * i + 1] = odd[i];
  }
}

// Lane j of every 128-bit group, in all four lanes of that group.
template <int j>
TNT_INLINE Vec splat_in_quad(Vec a) {
  return _mm512_permute_ps(a, j * 0x55);
}

// 2^x for x <= 0: degree 5 on the fraction in [0, 1), relative error 7.5e-8; scalef floors x
// itself, so that underflow, -inf and NaN need no care.
TNT_INLINE Vec exp2_nonpositive(Vec x) {
  const Vec f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  Vec p = splat(0.0018775766678f);
  p = fma(p, f, splat(0.0089893401083f));
  p = fma(p, f, splat(0.0558263180383f));
  p = fma(p, f, splat(0.2401536170495f));
  p = fma(p, f, splat(0.6931530731996f));
  p = fma(p, f, splat(0.9999999250635f));
  return _mm512_scalef_ps(p, x);
}

struct GeluSegment {
  __m512i index;
  Vec offset;
};

// Adding 3 * 2^20 leaves round(4 a) in the low mantissa bits, of which the lookup reads five.
TNT_INLINE GeluSegment gelu_segment(Vec a) {
  const Vec shifted = a + splat(3145728.0f);
  return {_mm512_castps_si512(shifted), _mm512_reduce_ps(a, 0x28)};  // a - round(4 a) / 4
}

TNT_INLINE Vec gelu_polynomial(const float (&table)[5][32], GeluSegment s) {
  Vec c[5];
#pragma GCC unroll 5
  for (int k = 0; k < 5; ++k) {
    c[k] = _mm512_permutex2var_ps(load(table[k]), s.index, load(table[k] + 16));
  }
  const Vec u = s.offset;
  return fma(fma(fma(fma(c[4], u, c[3]), u, c[2]), u, c[1]), u, c[0]);
}

constexpr float kGeluLast = 7.75f;  // centre of the last segment, where the table holds zeros

// gelu(x) = max(x, 0) + gelu(-|x|), by a table of gelu(-|x|): 14 instructions and no division.
TNT_INLINE Vec gelu(Vec x) {
  const Vec a = _mm512_range_ps(splat(kGeluLast), x, 0x0a);  // min(|x|, last)
  return max(zero(), x) + gelu_polynomial(kGeluTable.value, gelu_segment(a));
}

TNT_INLINE Vec gelu_and_slope(Vec x, Vec& slope) {
  const Vec a = min(splat(kGeluLast), abs(x));  // unlike range, min keeps a NaN for the slope
  const GeluSegment s = gelu_segment(a);
  slope = gelu_polynomial(kGeluTable.slope, s);
  const __mmask16 positive = _mm512_cmp_ps_mask(x, zero(), _CMP_GE_OQ);
  slope = _mm512_mask_sub_ps(slope, positive, splat(1.0f), slope);
  return max(zero(), x) + gelu_polynomial(kGeluTable.value, s);
}

}  // namespace tnt_kernels::cpu::TNT_ISA
