// Vec for AVX2 with FMA and F16C. See simd.h for what each function means.
#pragma once

#include <immintrin.h>

namespace tnt_kernels::cpu::TNT_ISA {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kRegisters = 16;

TNT_INLINE __m256i first(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

TNT_INLINE Vec zero() { return _mm256_setzero_ps(); }
TNT_INLINE Vec splat(float x) { return _mm256_set1_ps(x); }

TNT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
TNT_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
// A NaN in b, the second operand, is kept.
TNT_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
TNT_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
TNT_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(splat(-0.0f), a); }
TNT_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
TNT_INLINE Vec floor(Vec a) { return _mm256_floor_ps(a); }
TNT_INLINE float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
TNT_INLINE float largest(Vec a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
// The first n lanes, zero in the others.
TNT_INLINE Vec keep_n(Vec a, int n) { return _mm256_and_ps(_mm256_castsi256_ps(first(n)), a); }
// 2^x for whole x in [-127, 127]; 2^-127 gives 0.
TNT_INLINE Vec pow2_whole(Vec x) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvttps_epi32(x), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
TNT_INLINE Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
  return _mm256_blendv_ps(otherwise, if_negative, x);
}

TNT_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
TNT_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
TNT_INLINE Vec load_n(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
TNT_INLINE void store_n(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first(n), a); }

TNT_INLINE Vec from_bits(const BFloat16*, __m128i a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
}
TNT_INLINE Vec from_bits(const Float16*, __m128i a) { return _mm256_cvtph_ps(a); }
// Round to nearest even; a NaN becomes the quiet NaN that PyTorch writes.
TNT_INLINE __m128i to_bits(const BFloat16*, Vec a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_packus_epi32(rounded, rounded);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
TNT_INLINE __m128i to_bits(const Float16*, Vec a) {
  return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
}

template <class T>
TNT_INLINE Vec load(const T* p) {
  return from_bits(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class T>
TNT_INLINE void store(T* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bits(p, a));
}
// AVX2 has no masked 16-bit moves, so a partial vector goes through the stack.
template <class T>
TNT_INLINE Vec load_n(const T* p, int n) {
  T whole[kLanes] = {};
  __builtin_memcpy(whole, p, n * sizeof(T));
  return load(whole);
}
template <class T>
TNT_INLINE void store_n(T* p, Vec a, int n) {
  T whole[kLanes];
  store(whole, a);
  __builtin_memcpy(p, whole, n * sizeof(T));
}

// Four floats from each of p, p + stride: one 128-bit group after the other.
TNT_INLINE Vec load_quads(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
TNT_INLINE void store_quads(float* p, int64_t stride, Vec a) {
  _mm_storeu_ps(p, _mm256_castps256_ps128(a));
  _mm_storeu_ps(p + stride, _mm256_extractf128_ps(a, 1));
}

// Transposes the 4x4 matrix that each 128-bit group of a, b, c, d holds.
TNT_INLINE void transpose_quads(Vec& a, Vec& b, Vec& c, Vec& d) {
  const __m256d ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
  const __m256d ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
  const __m256d cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
  const __m256d cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  a = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
  b = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
  c = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
  d = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
}

TNT_INLINE void transpose(Vec (&m)[8]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // swaps the off-diagonal 4x4 blocks
    const Vec low = _mm256_permute2f128_ps(m[i], m[i + 4], 0x20);
    m[i + 4] = _mm256_permute2f128_ps(m[i], m[i + 4], 0x31);
    m[i] = low;
  }
  transpose_quads(m[0], m[1], m[2], m[3]);
  transpose_quads(m[4], m[5], m[6], m[7]);
}

// Lane j of every 128-bit group, in all four lanes of that group.
template <int j>
TNT_INLINE Vec splat_in_quad(Vec a) {
  return _mm256_permute_ps(a, j * 0x55);
}

}  // namespace tnt_kernels::cpu::TNT_ISA
