// What every instruction set shares: transcendentals where no lookup instruction exists, and copies
// between token-major and channel-major. See simd.h.
#pragma once

namespace tnt_kernels::cpu::TNT_ISA {

// While one lives, numbers below 1.2e-38 count as 0 on this thread: probabilities that far down
// would otherwise cost x86 processors some hundred cycles for every product they enter.
struct FlushDenormals {
#if defined(__SSE__)
  const unsigned saved = __builtin_ia32_stmxcsr();
  FlushDenormals() { __builtin_ia32_ldmxcsr(saved | 0x8040); }  // results, operands
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved); }
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
};

constexpr float kLog2E = 1.44269504088896341f;

#if !defined(TNT_SIMD_AVX512)

// 2^x for x <= 0: degree 5 on the fraction in [0, 1), relative error 7.5e-8; 0 below 2^-126.
TNT_INLINE Vec exp2_nonpositive(Vec x) {
  const Vec clamped = max(splat(-127.0f), x);
  const Vec whole = floor(clamped);
  const Vec f = clamped - whole;
  Vec p = splat(0.0018775766678f);
  p = fma(p, f, splat(0.0089893401083f));
  p = fma(p, f, splat(0.0558263180383f));
  p = fma(p, f, splat(0.2401536170495f));
  p = fma(p, f, splat(0.6931530731996f));
  p = fma(p, f, splat(0.9999999250635f));
  return p * pow2_whole(whole);
}

// The normal distribution's tail beyond a >= 0, given e = exp(-a^2/2): e times a polynomial in
// t = 1 / (1 + 0.28 a). Fitted for the least absolute error of a * tail, 1.1e-8.
TNT_INLINE Vec normal_tail(Vec a, Vec e) {
  const Vec t = splat(1.0f) / fma(splat(0.28f), a, splat(1.0f));
  Vec p = splat(-0.10632819264f);
  p = fma(p, t, splat(0.39206555146f));
  p = fma(p, t, splat(-0.24066708850f));
  p = fma(p, t, splat(0.27197044968f));
  p = fma(p, t, splat(0.06623025677f));
  p = fma(p, t, splat(0.11672901216f));
  return e * (p * t);
}

constexpr float kGeluLast = 40.0f;  // the tail is 0 from 13.5 on; a bound keeps inf * 0 away

// gelu(x) = max(x, 0) - |x| tail(|x|)
TNT_INLINE Vec gelu(Vec x) {
  const Vec a = min(splat(kGeluLast), abs(x));
  const Vec e = exp2_nonpositive((a * splat(-0.5f * kLog2E)) * a);
  return max(zero(), x) - a * normal_tail(a, e);
}

TNT_INLINE Vec gelu_and_slope(Vec x, Vec& slope) {
  const Vec a = min(splat(kGeluLast), abs(x));
  const Vec e = exp2_nonpositive((a * splat(-0.5f * kLog2E)) * a);
  const Vec tail = normal_tail(a, e);
  const Vec negative = tail - (a * splat(0.398942280401f)) * e;  // gelu'(-a)
  slope = select_negative(x, negative, splat(1.0f) - negative);
  return max(zero(), x) - a * tail;
}

#endif  // !TNT_SIMD_AVX512

// Copies a token-major tile, src[token * src_stride + channel], to channel-major,
// dst[channel * dst_stride + token]: 4 channels of kLanes tokens.
TNT_INLINE void transpose_4_channels(const float* src, int64_t src_stride, float* dst,
                                     int64_t dst_stride) {
  Vec a = load_quads(src, 4 * src_stride);
  Vec b = load_quads(src + src_stride, 4 * src_stride);
  Vec c = load_quads(src + 2 * src_stride, 4 * src_stride);
  Vec d = load_quads(src + 3 * src_stride, 4 * src_stride);
  transpose_quads(a, b, c, d);
  store(dst, a);
  store(dst + dst_stride, b);
  store(dst + 2 * dst_stride, c);
  store(dst + 3 * dst_stride, d);
}

// The other way round: 4 channels, src[channel * src_stride + token], of kLanes tokens.
TNT_INLINE void transpose_4_rows(const float* src, int64_t src_stride, float* dst,
                                 int64_t dst_stride) {
  Vec a = load(src);
  Vec b = load(src + src_stride);
  Vec c = load(src + 2 * src_stride);
  Vec d = load(src + 3 * src_stride);
  transpose_quads(a, b, c, d);
  store_quads(dst, 4 * dst_stride, a);
  store_quads(dst + dst_stride, 4 * dst_stride, b);
  store_quads(dst + 2 * dst_stride, 4 * dst_stride, c);
  store_quads(dst + 3 * dst_stride, 4 * dst_stride, d);
}

// n elements of any type to floats and back.
template <class T>
TNT_INLINE void to_floats(const T* src, float* dst, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load(src + i));
  if (i < n) store_n(dst + i, load_n(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}
template <class T>
TNT_INLINE void from_floats(const float* src, T* dst, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load(src + i));
  if (i < n) store_n(dst + i, load_n(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

}  // namespace tnt_kernels::cpu::TNT_ISA
