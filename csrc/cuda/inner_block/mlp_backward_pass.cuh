// The MLP's backward over all rows, with the sums in the registers of each warp: all of them, or
// slices.
#pragma once

#include "cuda/inner_block/backward_sums.cuh"
#include "cuda/inner_block/mlp_backward.cuh"

namespace tnt_kernels::cuda {

// Adds a chunk's part of the weights' gradients to sums.*[local].
template <class Config, class Values>
TNT_DEVICE void add_mlp_sums(const MlpBackwardWarp<Config>& warp,
                             const HiddenChunk<typename Config::Math>& y, Values& sums, int local) {
  using Math = typename Config::Math;
#pragma unroll
  for (int n = 0; n < Config::kInputs; ++n) {
    Math::mma(sums.fc1[local][n], y.gradient[0], y.gradient[1], warp.x.columns[n][0],
              warp.x.columns[n][1]);
    Math::mma(sums.fc2[local][n], y.hidden[0], y.hidden[1], warp.dz.columns[n][0],
              warp.dz.columns[n][1]);
  }
  sums.fc1_bias[local][0] += y.sum[0][0] + y.sum[1][0];
  sums.fc1_bias[local][1] += y.sum[0][1] + y.sum[1][1];
}

// All rows, for dx, or for a slice of the sums, or for both where one slice is all.
template <class Config>
TNT_DEVICE void mlp_bwd_pass(const BackwardParams& params) {
  constexpr int kInputs = Config::kInputs;
  const bool want_dx = params.dx != nullptr, want_dw = params.partials != nullptr;
  const Share<Config> share(params, want_dw);
  const int num_groups = static_cast<int>((params.num_rows + 15) / 16);
  MlpBackwardWarp<Config> warp;
  warp.weights = backward_weights<Config>(params.weights);
  typename Config::Values sums = {};
#pragma unroll 1
  for (int group = share.first(); group < num_groups; group += share.stride()) {
    const BackwardRows<Config> rows(group, params.num_rows);
    float rstd[2], dy[kInputs][4], dnormed[kInputs][4] = {};
    load_operands(rows, params, warp.x, warp.dz, rstd, dy, sums.fc2_bias);
    if (want_dw) {
      warp.x.set_columns();
      warp.dz.set_columns();
    }
    const auto chunk = [&](int c, int local) {
      const auto add = [&](const HiddenChunk<typename Config::Math>& y) {
        if (want_dw) add_mlp_sums(warp, y, sums, local);
      };
      warp.chunk(c, want_dx, add, dnormed);
    };
    if constexpr (Config::kKeep == Keep::kWarp) {
#pragma unroll
      for (int c = 0; c < Config::kChunks; ++c) chunk(c, c);
    } else {
      const int first = share.slice, last = want_dw ? first + 1 : Config::kChunks;
#pragma unroll 1
      for (int c = first; c < last; ++c) chunk(c, 0);
    }
    if (want_dx) store_dx(rows, params, warp.x, dnormed, rstd, dy);
  }
  if (!want_dw || !block_add_up(sums)) return;
  write_mlp_sums<Config>(sums, share.slice, share.partial());
}

}  // namespace tnt_kernels::cuda
