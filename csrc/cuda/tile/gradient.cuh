// What backward kernels need beside forward's tiles: arithmetic of the tensors' own type,
// transposition in registers, GELU with its slope, and the gradient of LayerNorm.
//
// Gradients have any size, so the operands of bf16 tensors are bf16, not fp16 as in forward. Those
// of fp16 tensors are fp16: what lies between the products has the range that PyTorch gives it,
// and a loss scale that suits PyTorch suits these kernels. All sums are fp32.
#pragma once

#include <type_traits>

#include "cuda/tile/activation.cuh"
#include "cuda/tile/layer_norm.cuh"

namespace tnt_kernels::cuda {

struct Brain {
  static constexpr int kUnitWords = 1;
  using Unit = Words<1>;
  using Tile = cuda::Tile<1>;

  struct Acc {
    float sum[4];
  };

  static TNT_DEVICE Acc start(const Unit& lower, const Unit& upper) {
    const FloatPair first = unpack_bf16(lower.w[0]), second = unpack_bf16(upper.w[0]);
    return {{first.lo, first.hi, second.lo, second.hi}};
  }

  static TNT_DEVICE Unit unit(float lo, float hi) { return {{pack_bf16(lo, hi)}}; }
  static TNT_DEVICE FloatPair unpack(const Unit& a) { return unpack_bf16(a.w[0]); }

  static TNT_DEVICE Tile tile(const float (&acc)[4]) {
    return {{unit(acc[0], acc[1]), unit(acc[2], acc[3])}};
  }

  static TNT_DEVICE Words<2> registers(const Tile& a) { return {{a.rows[0].w[0], a.rows[1].w[0]}}; }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a, const Unit& b) {
    warp_mma_bf16_k8(acc, registers(a), b.w[0]);
  }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    warp_mma_bf16_k16(acc, registers(a0), registers(a1), b0.w[0], b1.w[0]);
  }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a, const Unit& b) { mma(acc.sum, a, b); }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    mma(acc.sum, a0, a1, b0, b1);
  }
};

// The arithmetic for tensors of this type and width. Weights are rounded once more than PyTorch's,
// after the folds, and where they are few (C = 6) that error does not average out: the next better
// arithmetic then.
template <class Dtype, int kDim>
struct Gradient {
  static constexpr bool kIsBrain = std::is_same_v<Dtype, BFloat16>;
  static constexpr bool kIsHalf = std::is_same_v<Dtype, Float16>;
  using Usual =
      std::conditional_t<kIsBrain, Brain, std::conditional_t<kIsHalf, StrictHalf, Single>>;
  using Math = std::conditional_t<(kDim >= 8), Usual, std::conditional_t<kIsBrain, Tf32, Single>>;
};

// The unit whose rows are the columns of `a`.
TNT_DEVICE Words<1> warp_transpose(const Words<1>& a) { return {{warp_transpose_b16(a.w[0])}}; }

TNT_DEVICE Words<2> warp_transpose(const Words<2>& a) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  Words<2> y;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int source = 4 * (2 * t + i) + g / 2;
    const float even = warp_shuffle(as_float(a.w[0]), source);
    const float odd = warp_shuffle(as_float(a.w[1]), source);
    y.w[i] = as_word(g % 2 == 0 ? even : odd);
  }
  return y;
}

// 16x16, as two tiles side by side: y is x transposed.
template <class Tile>
TNT_DEVICE void transpose_pair(const Tile (&x)[2], Tile (&y)[2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i / 2].rows[i % 2] = warp_transpose(x[i % 2].rows[i / 2]);
}

// Phi(x), the distribution function of the normal distribution, given x^2 too.
template <class Math>
struct NormalCdf;

// 5 coefficients, error 1.6e-3, of x Phi(x) 1.2e-3: below half a unit of bf16.
template <>
struct NormalCdf<Brain> {
  static TNT_DEVICE float of(float x, float square) {
    float p = fma_f32(square, 1.05566605e-05f, -4.15143324e-04f);
    p = fma_f32(p, square, 6.71194540e-03f);
    p = fma_f32(p, square, -5.98077439e-02f);
    p = fma_f32(p, square, 3.94279450e-01f);
    return fma_sat_f32(x, p, 0.5f);
  }
};

template <>
struct NormalCdf<Tf32> {
  static TNT_DEVICE float of(float x, float square) { return PolynomialGelu<Tf32>::cdf(x, square); }
};

template <>
struct NormalCdf<StrictHalf> : NormalCdf<Tf32> {};

template <>
struct NormalCdf<Single> {
  static TNT_DEVICE float of(float x, float) {
    return fma_f32(0.5f, erf_f32(x * 0.70710678f), 0.5f);
  }
};

// GELU(x) = x Phi(x), and its slope Phi(x) + x phi(x).
template <class Math>
TNT_DEVICE FloatPair gelu_and_slope(float x) {
  const float square = x * x, cdf = NormalCdf<Math>::of(x, square);
  // exp(-x^2 / 2) / sqrt(2 pi) as a power of 2
  const float density = exp2_approx(fma_f32(square, -0.72134752f, -1.32574806f));
  return {x * cdf, fma_f32(x, density, cdf)};
}

// Sum over the eight lanes that share columns.
TNT_DEVICE float warp_column_sum(float x) {
  x += warp_shuffle_xor<4>(x);
  x += warp_shuffle_xor<8>(x);
  return x + warp_shuffle_xor<16>(x);
}

// Sum over the lanes of a warp.
TNT_DEVICE float warp_sum(float x) { return warp_column_sum(warp_row_sum(x)); }

// dx += rstd (dnormed - mean(dnormed) - normed mean(dnormed normed)), of which dx is the
// residual's part.
template <class Layout, int kDim>
TNT_DEVICE void warp_normalize_bwd(const float (&normed)[Layout::kTiles][4],
                                   const float (&dnormed)[Layout::kTiles][4],
                                   const float (&rstd)[2], float (&dx)[Layout::kTiles][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = dnormed[0][2 * half] + dnormed[0][2 * half + 1], product = 0;
#pragma unroll
    for (int k = 0; k < Layout::kTiles; ++k) {
      if (k > 0) sum += dnormed[k][2 * half] + dnormed[k][2 * half + 1];
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        product = fma_f32(dnormed[k][i], normed[k][i], product);
      }
    }
    const float mean = warp_row_sum(sum) * (1.0f / kDim);
    const float slope = warp_row_sum(product) * (1.0f / kDim);
#pragma unroll
    for (int k = 0; k < Layout::kTiles; ++k) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const float centred = fma_f32(-slope, normed[k][i], dnormed[k][i] - mean);
        dx[k][i] = fma_f32(rstd[half], centred, dx[k][i]);
      }
    }
  }
}

// Adds up a value per thread over the warps of a block, always in the same order. Each calls
// f(float&) for its values; the last warp ends with the sums and gets true. Uses 32 words of shared
// memory per value.
template <class Values>
TNT_DEVICE bool block_add_up(Values& values) {
  uint32_t* sums_smem = dynamic_shared();
  const int warps = block_threads() / 32;
  block_sync();
#pragma unroll 1
  for (int turn = 0; turn < warps; ++turn) {
    if (warp_id() == turn) {
      int i = 0;
      values.each([&](float& value) {
        uint32_t* sum = sums_smem + 32 * i++ + lane_id();
        if (turn > 0) value += load_float(sum);
        if (turn + 1 < warps) store_float(sum, value);
      });
    }
    block_sync();
  }
  return warp_id() + 1 == warps;
}

}  // namespace tnt_kernels::cuda
