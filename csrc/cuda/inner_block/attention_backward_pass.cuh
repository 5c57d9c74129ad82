// Attention's backward over all rows, with all sums in the registers of each warp.
#pragma once

#include "cuda/inner_block/attention_backward.cuh"
#include "cuda/inner_block/backward_sums.cuh"

namespace tnt_kernels::cuda {

// A step's part of the sums.
template <class Config>
TNT_DEVICE void add_attention_sums(const AttentionBackwardWarp<Config>& warp,
                                   const StepGradients<Config>& grad, int step,
                                   typename Config::Values& sums) {
  using Math = typename Config::Math;
  using Tile = typename Math::Tile;
#pragma unroll
  for (int pair = 0; pair < Config::kPairs; ++pair) {
#pragma unroll
    for (int m = 0; m < Config::kMatrices; ++m) {
      const Tile tokens[2] = {feature_gradient(grad, m, 2 * pair),
                              feature_gradient(grad, m, 2 * pair + 1)};
      Tile features[2];  // features are rows
      transpose_pair(tokens, features);
      const auto& columns = m == 3 ? warp.dz.columns : warp.x.columns;
#pragma unroll
      for (int n = 0; n < Config::kInputs; ++n) {
        Math::mma(sums.matrix[step][pair][m][n], features[0], features[1], columns[n][0],
                  columns[n][1]);
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int group = 2 * pair + e / 2;
      if (group < Config::kGroups) {
        sums.q_bias[step][pair][e / 2][e % 2] += grad.q_bias[group][e % 2];
      }
    }
  }
}

// For dx, or for the sums, or for both.
template <class Config>
TNT_DEVICE void attention_bwd_pass(const BackwardParams& params) {
  constexpr int kInputs = Config::kInputs;
  const bool want_dx = params.dx != nullptr, want_dw = params.partials != nullptr;
  const Share<Config> share(params, want_dw);
  const int num_groups = static_cast<int>((params.num_rows + 15) / 16);
  AttentionBackwardWarp<Config> warp;
  warp.weights = backward_weights<Config>(params.weights);
  typename Config::Values sums = {};
#pragma unroll 1
  for (int group = share.first(); group < num_groups; group += share.stride()) {
    const BackwardRows<Config> rows(group, params.num_rows);
    float rstd[2], dy[kInputs][4], dnormed[kInputs][4] = {};
    load_operands(rows, params, warp.x, warp.dz, rstd, dy, sums.proj_bias);
    if (want_dw) {
      warp.x.set_columns();
      warp.dz.set_columns();
    }
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      const auto add = [&](const StepGradients<Config>& grad) {
        add_attention_sums(warp, grad, step, sums);
      };
      warp.step(step, want_dx, want_dw, add, dnormed);
    }
    if (want_dx) store_dx(rows, params, warp.x, dnormed, rstd, dy);
  }
  if (!want_dw || !block_add_up(sums)) return;
  write_attention_sums<Config>(sums, share.partial());
}

}  // namespace tnt_kernels::cuda
