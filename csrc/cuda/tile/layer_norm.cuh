// LayerNorm without its affine part, which is folded into the weights that follow.
#pragma once

#include "cuda/tile/rows.cuh"

namespace tnt_kernels::cuda {

// Sum over the four lanes that share a row.
TNT_DEVICE float warp_row_sum(float x) {
  x += warp_shuffle_xor<1>(x);
  return x + warp_shuffle_xor<2>(x);
}

TNT_DEVICE float warp_row_max(float x) {
  x = max_f32(x, warp_shuffle_xor<1>(x));
  return max_f32(x, warp_shuffle_xor<2>(x));
}

// (x - mean) / sqrt(variance + eps) of a 16-row tile; rstd of rows g and g + 8.
template <class Layout, int kDim>
TNT_DEVICE void warp_normalize(const float (&x)[Layout::kTiles][4], float eps,
                               float (&normed)[Layout::kTiles][4], float (&rstd)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < Layout::kTiles; ++k) sum += x[k][2 * half] + x[k][2 * half + 1];
    const float mean = warp_row_sum(sum) * (1.0f / kDim);
    float squares = 0;
#pragma unroll
    for (int k = 0; k < Layout::kTiles; ++k) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        normed[k][i] = Layout::lane_has_channels() ? x[k][i] - mean : 0.0f;
        squares = fma_f32(normed[k][i], normed[k][i], squares);
      }
    }
    rstd[half] = rsqrt_approx(fma_f32(warp_row_sum(squares), 1.0f / kDim, eps));
#pragma unroll
    for (int k = 0; k < Layout::kTiles; ++k) {
      normed[k][2 * half] *= rstd[half];
      normed[k][2 * half + 1] *= rstd[half];
    }
  }
}

// The same as left operand of a product.
template <class Layout, int kDim, class Math>
TNT_DEVICE void warp_layer_norm(const float (&x)[Layout::kTiles][4], float eps,
                                typename Math::Tile (&y)[Layout::kTiles]) {
  float normed[Layout::kTiles][4], rstd[2];
  warp_normalize<Layout, kDim>(x, eps, normed, rstd);
#pragma unroll
  for (int k = 0; k < Layout::kTiles; ++k) y[k] = Math::tile(normed[k]);
}

}  // namespace tnt_kernels::cuda
