// Vec in the vector extensions of GCC and Clang: 4 lanes, for any machine. See simd.h for what each
// function means.
#pragma once

namespace tnt_kernels::cpu::TNT_ISA {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
constexpr int kLanes = 4;
#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

TNT_INLINE Vec zero() { return Vec{}; }
TNT_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }

// -ffp-contract=fast makes these one instruction where the machine has it.
TNT_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
TNT_INLINE Vec fnma(Vec a, Vec b, Vec c) { return c - a * b; }
// A NaN in b, the second operand, is kept.
TNT_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
TNT_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
TNT_INLINE Vec abs(Vec a) { return (Vec)((IntVec)a & 0x7fffffff); }
TNT_INLINE Vec sqrt(Vec a) {
  return Vec{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
             __builtin_sqrtf(a[3])};
}
TNT_INLINE Vec floor(Vec a) {  // |a| < 2^31
  const Vec whole = __builtin_convertvector(__builtin_convertvector(a, IntVec), Vec);
  return whole - (Vec)((IntVec)splat(1.0f) & (whole > a));
}
TNT_INLINE float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
TNT_INLINE float largest(Vec a) {
  const float low = a[0] > a[1] ? a[0] : a[1], high = a[2] > a[3] ? a[2] : a[3];
  return low > high ? low : high;
}
// The first n lanes, zero in the others.
TNT_INLINE Vec keep_n(Vec a, int n) {
  const IntVec lane = {0, 1, 2, 3};
  return (Vec)((IntVec)a & (lane < n));
}
// 2^x for whole x in [-127, 127]; 2^-127 gives 0.
TNT_INLINE Vec pow2_whole(Vec x) { return (Vec)((__builtin_convertvector(x, IntVec) + 127) << 23); }
TNT_INLINE Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
  return (IntVec)x < 0 ? if_negative : otherwise;
}

TNT_INLINE Vec load(const float* p) {
  Vec a;
  __builtin_memcpy(&a, p, sizeof(a));
  return a;
}
TNT_INLINE void store(float* p, Vec a) { __builtin_memcpy(p, &a, sizeof(a)); }

TNT_INLINE uint32_t to_uint(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}
TNT_INLINE float to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}
TNT_INLINE float to_float(BFloat16 x) { return to_float(uint32_t{x.bits} << 16); }
// Round to nearest even; a NaN becomes the quiet NaN that PyTorch writes.
TNT_INLINE void from_float(float x, BFloat16* out) {
  const uint32_t bits = to_uint(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}
TNT_INLINE float to_float(Float16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t rest = uint32_t{x.bits & 0x7fffu} << 13;
  if (rest >= 0x7c00u << 13) return to_float(sign | 0x7f800000u | rest);  // infinity or NaN
  // the exponent's bias is 112 too small; a product by 2^112 also normalises subnormals
  return to_float(sign | to_uint(to_float(rest) * 0x1p112f));
}
TNT_INLINE void from_float(float x, Float16* out) {
  const uint32_t sign = (to_uint(x) >> 16) & 0x8000u;
  const uint32_t magnitude = to_uint(x) & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and up round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // below 2^-14: adding 1/2 makes the FPU round to the subnormals' spacing of 2^-24
    half = to_uint(to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

TNT_INLINE void from_float(float x, float* out) { *out = x; }
TNT_INLINE float to_float(float x) { return x; }
template <class T>
TNT_INLINE Vec load(const T* p) {
  return Vec{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <class T>
TNT_INLINE void store(T* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) from_float(a[i], p + i);
}
template <class T>
TNT_INLINE Vec load_n(const T* p, int n) {
  Vec a = {};
  for (int i = 0; i < n; ++i) a[i] = to_float(p[i]);
  return a;
}
template <class T>
TNT_INLINE void store_n(T* p, Vec a, int n) {
  for (int i = 0; i < n; ++i) from_float(a[i], p + i);
}

// Four floats: a vector here is one 128-bit group, and the stride between groups has no meaning.
TNT_INLINE Vec load_quads(const float* p, int64_t) { return load(p); }
TNT_INLINE void store_quads(float* p, int64_t, Vec a) { store(p, a); }

#if defined(__clang__)
#define TNT_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define TNT_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, IntVec{i, j, k, l})
#endif

TNT_INLINE void transpose_quads(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec ab_low = TNT_SHUFFLE(a, b, 0, 4, 1, 5);
  const Vec ab_high = TNT_SHUFFLE(a, b, 2, 6, 3, 7);
  const Vec cd_low = TNT_SHUFFLE(c, d, 0, 4, 1, 5);
  const Vec cd_high = TNT_SHUFFLE(c, d, 2, 6, 3, 7);
  a = TNT_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
  b = TNT_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
  c = TNT_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
  d = TNT_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
}
TNT_INLINE void transpose(Vec (&m)[4]) { transpose_quads(m[0], m[1], m[2], m[3]); }

template <int j>
TNT_INLINE Vec splat_in_quad(Vec a) {
  return splat(a[j]);
}

}  // namespace tnt_kernels::cpu::TNT_ISA
