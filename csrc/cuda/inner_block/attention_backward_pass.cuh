// Attention's backward over all rows, with the sums in the registers of each warp: all of them, or
// slices.
#pragma once

#include "cuda/inner_block/attention_backward.cuh"
#include "cuda/inner_block/backward_sums.cuh"

namespace tnt_kernels::cuda {

// Gradients of two feature groups: of q, k, v and of the output.
template <class Config>
struct PairGradients {
  typename Config::Math::Tile features[Config::kMatrices][2];
  float q_bias[2][2];
};

// Feature groups 2 pair and 2 pair + 1 of a step; 0 for the pad of an odd number of groups.
template <class Config>
TNT_DEVICE void choose_pair(const StepGradients<Config> (&grad)[Config::kTiles], int pair,
                            PairGradients<Config> (&chosen)[Config::kTiles]) {
#pragma unroll
  for (int i = 0; i < Config::kTiles; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int f = 2 * pair + e;
#pragma unroll
      for (int m = 0; m < Config::kMatrices; ++m) {
        chosen[i].features[m][e] = feature_gradient(grad[i], m, f);
      }
      chosen[i].q_bias[e][0] = f < Config::kGroups ? grad[i].q_bias[f][0] : 0.0f;
      chosen[i].q_bias[e][1] = f < Config::kGroups ? grad[i].q_bias[f][1] : 0.0f;
    }
  }
}

template <class Config>
TNT_DEVICE void add_attention_sums(const AttentionBackwardWarp<Config>& warp,
                                   const PairGradients<Config> (&grad)[Config::kTiles],
                                   typename Config::Values& sums, int local, int local_pair) {
  using Math = typename Config::Math;
  float (&matrix)[Config::kMatrices][Config::kInputs][4] = sums.matrix[local][local_pair];
#pragma unroll
  for (int i = 0; i < Config::kTiles; ++i) {
    typename Math::Tile features[Config::kMatrices][2];  // features are rows
#pragma unroll
    for (int m = 0; m < Config::kMatrices; ++m) transpose_pair(grad[i].features[m], features[m]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums.q_bias[local][local_pair][e / 2][e % 2] += grad[i].q_bias[e / 2][e % 2];
    }
#pragma unroll Config::kUnrollInputs
    for (int n = 0; n < Config::kInputs; ++n) {
#pragma unroll
      for (int m = 0; m < Config::kMatrices; ++m) {
        const auto& tokens = m == 3 ? warp.dz[i].columns[n] : warp.x[i].columns[n];
        Math::mma(matrix[m][n], features[m][0], features[m][1], tokens[0], tokens[1]);
      }
    }
  }
}

// All rows, for dx, or for a slice of the sums, or for both where one slice is all.
template <class Config>
TNT_DEVICE void attention_bwd_pass(const BackwardParams& params) {
  constexpr int kInputs = Config::kInputs, kTiles = Config::kTiles, kPairs = Config::kPairs;
  constexpr int kRows = BackwardRows<Config>::kRows;
  const bool want_dx = params.dx != nullptr, want_dw = params.partials != nullptr;
  const Share<Config> share(params, want_dw);
  const int num_groups = static_cast<int>((params.num_rows + kRows - 1) / kRows);
  AttentionBackwardWarp<Config> warp;
  warp.weights = backward_weights<Config>(params.weights);
  typename Config::Values sums = {};
#pragma unroll 1
  for (int group = share.first(); group < num_groups; group += share.stride()) {
    const BackwardRows<Config> rows(group, params.num_rows);
    float rstd[kTiles][2], dy[kTiles][kInputs][4], dnormed[kTiles][kInputs][4] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      load_operands(rows, params, i, warp.x[i], warp.dz[i], rstd[i], dy[i], sums.proj_bias);
      if (want_dw) {
        warp.x[i].set_columns();
        warp.dz[i].set_columns();
      }
    }
    if constexpr (Config::kKeep == Keep::kWarp) {
#pragma unroll
      for (int step = 0; step < Config::kSteps; ++step) {
        const auto add = [&](const StepGradients<Config>(&grad)[kTiles]) {
#pragma unroll
          for (int pair = 0; pair < kPairs; ++pair) {
            PairGradients<Config> chosen[kTiles];
            choose_pair(grad, pair, chosen);
            add_attention_sums(warp, chosen, sums, step, pair);
          }
        };
        warp.step(step, want_dx, want_dw, add, dnormed);
      }
    } else {
      const auto add = [&](const StepGradients<Config>(&grad)[kTiles]) {
        PairGradients<Config> chosen[kTiles] = {};
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          if (pair == share.slice % kPairs) choose_pair(grad, pair, chosen);
        }
        add_attention_sums(warp, chosen, sums, 0, 0);
      };
      const int first = share.slice / kPairs, last = want_dw ? first + 1 : Config::kSteps;
#pragma unroll 1
      for (int step = first; step < last; ++step) warp.step(step, want_dx, want_dw, add, dnormed);
    }
    if (!want_dx) continue;
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      store_dx(rows, params, i, warp.x[i], dnormed[i], rstd[i], dy[i]);
  }
  if (!want_dw || !block_add_up(sums)) return;
  write_attention_sums<Config>(sums, share.slice, share.partial());
}

}  // namespace tnt_kernels::cuda
