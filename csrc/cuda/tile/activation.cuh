// GELU on the accumulator of fc1, which becomes the left operand of fc2.
#pragma once

#include "cuda/tile/fragment.cuh"

namespace tnt_kernels::cuda {

// x Phi(x) with Phi(x) = clamp(1/2 + x p(x^2), 0, 1): p is fitted so that the largest error of
// x Phi(x) is least, with a positive leading coefficient, so that the clamp takes over beyond the
// range of the fit. fc1 is packed kHiddenScale times smaller and fc2 as much larger, which brings
// the coefficients into fp16's range.
template <class Math>
struct Gelu;

// fp16 pairs: 5 coefficients, error 2e-3 below |x| = 2 with the roundings of fp16.
template <>
struct Gelu<FastHalf> {
  static constexpr float kHiddenScale = 0.5f;

  static TNT_DEVICE FastHalf::Tile apply(const FastHalf::Acc& acc) {
    return {{{{pair(acc.pair.w[0])}}, {{pair(acc.pair.w[1])}}}};
  }

  static TNT_DEVICE uint32_t pair(uint32_t x) {
    const uint32_t square = mul_f16x2(x, x);
    uint32_t p = fma_f16x2(square, twice(kCoefficient4), twice(kCoefficient3));
    p = fma_f16x2(p, square, twice(kCoefficient2));
    p = fma_f16x2(p, square, twice(kCoefficient1));
    p = fma_f16x2(p, square, twice(kCoefficient0));
    return mul_f16x2(x, fma_sat_f16x2(x, p, twice(kHalf)));
  }

  // Coefficients of x / kHiddenScale in fp16, the lowest first.
  static constexpr uint32_t kCoefficient0 = 0x3a51;  // 0.789551
  static constexpr uint32_t kCoefficient1 = 0xb7b4;  // -0.481445
  static constexpr uint32_t kCoefficient2 = 0x32f6;  // 0.217529
  static constexpr uint32_t kCoefficient3 = 0xaaef;  // -0.0541687
  static constexpr uint32_t kCoefficient4 = 0x1dad;  // 0.00554276
  static constexpr uint32_t kHalf = 0x3800;

  static constexpr uint32_t twice(uint32_t bits) { return bits << 16 | bits; }
};

// fp32 evaluation, 9 coefficients, error 6e-5.
template <class Math>
struct PolynomialGelu {
  static constexpr float kHiddenScale = 1.0f;

  static TNT_DEVICE typename Math::Tile apply(const typename Math::Acc& acc) {
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = value(acc.sum[i]);
    return Math::tile(y);
  }

  static TNT_DEVICE float value(float x) { return x * cdf(x, x * x); }

  static TNT_DEVICE float cdf(float x, float square) {
    float p = fma_f32(square, 3.69476132e-11f, -3.86618459e-09f);
    p = fma_f32(p, square, 1.78286866e-07f);
    p = fma_f32(p, square, -4.81034958e-06f);
    p = fma_f32(p, square, 8.53151530e-05f);
    p = fma_f32(p, square, -1.06225132e-03f);
    p = fma_f32(p, square, 9.67237788e-03f);
    p = fma_f32(p, square, -6.61365758e-02f);
    p = fma_f32(p, square, 3.98807517e-01f);
    return fma_sat_f32(x, p, 0.5f);
  }
};

template <>
struct Gelu<StrictHalf> : PolynomialGelu<StrictHalf> {};

template <>
struct Gelu<Tf32> : PolynomialGelu<Tf32> {};

template <>
struct Gelu<Single> {
  static constexpr float kHiddenScale = 1.0f;

  static TNT_DEVICE Single::Tile apply(const Single::Acc& acc) {
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float half = 0.5f * acc.sum[i];
      y[i] = fma_f32(half, erf_f32(acc.sum[i] * 0.70710678f), half);
    }
    return Single::tile(y);
  }
};

}  // namespace tnt_kernels::cuda
