// Attention's backward over all rows, with the sums in the registers of a block.
#pragma once

#include "cuda/inner_block/attention_backward.cuh"
#include "cuda/inner_block/backward_sums.cuh"
#include "cuda/inner_block/band_sums.cuh"

namespace tnt_kernels::cuda {

// Leaves the bands of a step's gradients, features as rows, in a staged tile.
template <class Config>
TNT_DEVICE void stage_step(const StepGradients<Config>& grad, int step, uint32_t* tile) {
  using Tile = typename Config::Math::Tile;
#pragma unroll
  for (int pair = 0; pair < Config::kPairs; ++pair) {
#pragma unroll
    for (int m = 0; m < Config::kMatrices; ++m) {
      const Tile tokens[2] = {feature_gradient(grad, m, 2 * pair),
                              feature_gradient(grad, m, 2 * pair + 1)};
      Tile features[2];
      transpose_pair(tokens, features);
      BandSums<Config>::write_band(tile, m, step * Config::kPairs + pair, features);
    }
  }
}

template <class Config>
TNT_DEVICE void attention_bwd_staged(const BackwardParams& params) {
  using Bands = BandSums<Config>;
  constexpr int kInputs = Config::kInputs;
  const bool want_dx = params.dx != nullptr, want_dw = params.partials != nullptr;
  const int num_groups = static_cast<int>((params.num_rows + 15) / 16);
  AttentionBackwardWarp<Config> warp;
  warp.weights = backward_weights<Config>(params.weights);
  uint32_t* tile = Bands::tile(warp_id());
  Bands bands;
  ColumnSums<kInputs> dz_sums = {};
#pragma unroll 1
  for (BlockShare<Config> share(params, num_groups); share.left() > 0; share.next()) {
    const BackwardRows<Config> rows(share.first + warp_id(), params.num_rows);
    if (warp_id() < share.left()) {
      float rstd[2], dy[kInputs][4], dnormed[kInputs][4] = {};
      load_operands(rows, params, warp.x, warp.dz, rstd, dy, dz_sums);
      if (want_dw) Bands::write_columns(tile, warp.x, warp.dz);
#pragma unroll 1
      for (int step = 0; step < Config::kSteps; ++step) {
        const auto stage = [&](const StepGradients<Config>& grad) { stage_step(grad, step, tile); };
        warp.step(step, want_dx, want_dw, stage, dnormed);
      }
      if (want_dx) store_dx(rows, params, warp.x, dnormed, rstd, dy);
    }
    if (!want_dw) continue;
    block_sync();
    bands.add(0, share.left() < Config::kWarps ? share.left() : Config::kWarps);
    block_sync();
  }
  if (!want_dw) return;
  float* partial = params.partials + block_id() * int64_t{Config::kSums};
  float* matrix = partial + Bands::kind() * (Config::kDim * Config::kDim);
  bands.template write<Config::kDim>(
      matrix, partial + Config::kQueryBiasSum, [](int band, int index) {
        return attention_weight_row<Config>(band / Config::kPairs,
                                            band % Config::kPairs * 2 + index / 8, index % 8);
      });
  if (!block_add_up(dz_sums)) return;
  write_column_sums<Config>(dz_sums, partial + Config::kProjBiasSum);
}

}  // namespace tnt_kernels::cuda
