// The MLP's backward over all rows, with the sums in the registers of a block.
#pragma once

#include "cuda/inner_block/backward_sums.cuh"
#include "cuda/inner_block/band_sums.cuh"
#include "cuda/inner_block/mlp_backward.cuh"

namespace tnt_kernels::cuda {

template <class Config>
TNT_DEVICE void mlp_bwd_staged(const BackwardParams& params) {
  using Math = typename Config::Math;
  using Bands = BandSums<Config>;
  constexpr int kInputs = Config::kInputs, kRoundChunks = Config::kRoundBands;
  const bool want_dx = params.dx != nullptr, want_dw = params.partials != nullptr;
  const int num_groups = static_cast<int>((params.num_rows + 15) / 16);
  MlpBackwardWarp<Config> warp;
  warp.weights = backward_weights<Config>(params.weights);
  uint32_t* tile = Bands::tile(warp_id());
  Bands bands;
  ColumnSums<kInputs> dz_sums = {};
#pragma unroll 1
  for (BlockShare<Config> share(params, num_groups); share.left() > 0; share.next()) {
    const bool busy = warp_id() < share.left();
    const BackwardRows<Config> rows(share.first + warp_id(), params.num_rows);
    float rstd[2], dy[kInputs][4], dnormed[kInputs][4] = {};
    if (busy) {
      load_operands(rows, params, warp.x, warp.dz, rstd, dy, dz_sums);
      if (want_dw) Bands::write_columns(tile, warp.x, warp.dz);
    }
#pragma unroll
    for (int round = 0; round * kRoundChunks < Config::kChunks; ++round) {
      const int first = round * kRoundChunks;
      const int chunks =
          Config::kChunks - first < kRoundChunks ? Config::kChunks - first : kRoundChunks;
      if (busy) {
#pragma unroll Config::kUnrollStaged
        for (int c = 0; c < chunks; ++c) {
          const auto stage = [&](const HiddenChunk<Math>& y) {
            if (!want_dw) return;
            Bands::write_band(tile, 0, c, y.gradient);
            Bands::write_band(tile, 1, c, y.hidden);
          };
          warp.chunk(first + c, want_dx, stage, dnormed);
        }
        if (first + chunks == Config::kChunks && want_dx) {
          store_dx(rows, params, warp.x, dnormed, rstd, dy);
        }
      }
      if (!want_dw) continue;
      block_sync();
      bands.add(round, share.left() < Config::kWarps ? share.left() : Config::kWarps);
      block_sync();
    }
  }
  if (!want_dw) return;
  float* partial = params.partials + block_id() * int64_t{Config::kSums};
  float* matrix = partial + (Bands::kind() == 0 ? Config::kFc1Sum : Config::kFc2Sum);
  bands.template write<Config::kHidden>(matrix, partial + Config::kFc1BiasSum,
                                        [](int band, int index) { return 16 * band + index; });
  if (!block_add_up(dz_sums)) return;
  write_column_sums<Config>(dz_sums, partial + Config::kFc2BiasSum);
}

}  // namespace tnt_kernels::cuda
