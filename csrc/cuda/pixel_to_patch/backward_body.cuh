// What surrounds the two matrix products of pixel_to_patch's backward: LN1's rows, LN2's backward
// and LN1's. One warp per row, blocks in turn; sums over rows stay in registers, each lane's
// columns being its own, and leave a partial per block, which sum_partials adds in a fixed order.
#pragma once

#include "cuda/pixel_to_patch/forward_body.cuh"

namespace tnt_kernels::cuda {

// Element i of a lane, of a vector that repeats along the row.
TNT_DEVICE float repeated_at(const WeightView& vector, int column, int period) {
  return weight_at(vector, column % period);
}

// The first row of a warp, and the step to its next.
struct WarpTurn {
  int64_t first, step;

  TNT_DEVICE WarpTurn()
      : first(int64_t{block_id()} * kPatchWarps + warp_id()),
        step(int64_t{num_blocks()} * kPatchWarps) {}
};

// Adds the sums of the block's warps in their order, into partials[block]; one float of shared
// memory per column.
template <int kWidth>
TNT_DEVICE void block_store_sums(const float (&sums)[LaneRow<kWidth>::kCount], float* partials) {
  using Row = LaneRow<kWidth>;
  uint32_t* words = dynamic_shared();
#pragma unroll 1
  for (int warp = 0; warp < kPatchWarps; ++warp) {
    block_sync();
    if (warp_id() != warp) continue;
#pragma unroll
    for (int i = 0; i < Row::kCount; ++i) {
      const float before = warp == 0 ? 0.0f : load_float(words + Row::column(i));
      store_words(words + Row::column(i), Words<1>{{as_word(before + sums[i])}});
    }
  }
  block_sync();
  float* partial = partials + int64_t{block_id()} * kWidth;
  for (int i = thread_id(); i < kWidth; i += block_threads()) {
    store_words(partial + i, load_words<1>(words + i));
  }
}

template <class Dtype, int kWidth>
TNT_DEVICE void patch_normalise_body(const PatchNormalise& params) {
  using Row = LaneRow<kWidth>;
  const RowGroups groups(kWidth, params.norm1_width);
  float gamma[Row::kCount], beta[Row::kCount];
#pragma unroll
  for (int i = 0; i < Row::kCount; ++i) {
    gamma[i] = repeated_at(params.norm1_weight, Row::column(i), params.norm1_width);
    beta[i] = repeated_at(params.norm1_bias, Row::column(i), params.norm1_width);
  }
  const WarpTurn turn;
  for (int64_t row = turn.first; row < params.num_patches; row += turn.step) {
    RowUnit<Dtype> units[Row::kUnits];
    load_lane_row<Dtype, kWidth>(params.pixels, row, units);
    float x[Row::kCount];
    unpack_lane_row<Dtype, kWidth>(units, x);
    normalise<Row::kCount>(groups, params.eps, x);
#pragma unroll
    for (int i = 0; i < Row::kCount; ++i) x[i] = fma_f32(x[i], gamma[i], beta[i]);
    store_lane_row<Dtype, kWidth>(params.rows, row, x);
  }
}

template <class Dtype, int kWidth>
TNT_DEVICE void patch_norm2_bwd_body(const PatchNorm2Backward& params) {
  using Row = LaneRow<kWidth>;
  const RowGroups groups(kWidth, kWidth);
  float gamma[Row::kCount];
  float dbias[Row::kCount] = {}, dgamma[Row::kCount] = {}, dbeta[Row::kCount] = {};
#pragma unroll
  for (int i = 0; i < Row::kCount; ++i) {
    gamma[i] = params.has_norm2 ? weight_at(params.norm2_weight, Row::column(i)) : 1.0f;
  }
  const WarpTurn turn;
  for (int64_t row = turn.first; row < params.num_patches; row += turn.step) {
    const int64_t from =
        params.patches_per_image > 0 ? token_row(row, params.patches_per_image) : row;
    float dz[Row::kCount];
    with_type(params.dy_type, [&](auto type) {
      using Type = decltype(type);
      RowUnit<Type> units[Row::kUnits];
      load_lane_row<Type, kWidth>(params.dy, from, units);
      unpack_lane_row<Type, kWidth>(units, dz);
    });
    if (params.has_norm2) {
      RowUnit<Dtype> units[Row::kUnits];
      load_lane_row<Dtype, kWidth>(params.projection, row, units);
      float zhat[Row::kCount];
      unpack_lane_row<Dtype, kWidth>(units, zhat);
      const GroupValue rstd = normalise<Row::kCount>(groups, params.eps, zhat);
#pragma unroll
      for (int i = 0; i < Row::kCount; ++i) {
        dgamma[i] = fma_f32(dz[i], zhat[i], dgamma[i]);
        dbeta[i] += dz[i];
        dz[i] *= gamma[i];
      }
      normalise_backward<Row::kCount>(groups, rstd, zhat, dz);
    }
#pragma unroll
    for (int i = 0; i < Row::kCount; ++i) dbias[i] += dz[i];
    store_lane_row<Dtype, kWidth>(params.dz, row, dz);
  }
  if (params.partials == nullptr) return;
  const int64_t next = int64_t{num_blocks()} * kWidth;
  block_store_sums<kWidth>(dbias, params.partials);
  if (!params.has_norm2) return;
  block_store_sums<kWidth>(dgamma, params.partials + next);
  block_store_sums<kWidth>(dbeta, params.partials + 2 * next);
}

template <class Dtype, int kWidth>
TNT_DEVICE void patch_norm1_bwd_body(const PatchNorm1Backward& params) {
  using Row = LaneRow<kWidth>;
  const RowGroups groups(kWidth, params.norm1_width);
  float gamma[Row::kCount], dgamma[Row::kCount] = {}, dbeta[Row::kCount] = {};
#pragma unroll
  for (int i = 0; i < Row::kCount; ++i) {
    gamma[i] = repeated_at(params.norm1_weight, Row::column(i), params.norm1_width);
  }
  const WarpTurn turn;
  for (int64_t row = turn.first; row < params.num_patches; row += turn.step) {
    RowUnit<Dtype> units[2][Row::kUnits];
    load_lane_row<Dtype, kWidth>(params.pixels, row, units[0]);
    load_lane_row<Dtype, kWidth>(params.drows, row, units[1]);
    float xhat[Row::kCount], dx[Row::kCount];
    unpack_lane_row<Dtype, kWidth>(units[0], xhat);
    unpack_lane_row<Dtype, kWidth>(units[1], dx);
    const GroupValue rstd = normalise<Row::kCount>(groups, params.eps, xhat);
#pragma unroll
    for (int i = 0; i < Row::kCount; ++i) {
      dgamma[i] = fma_f32(dx[i], xhat[i], dgamma[i]);
      dbeta[i] += dx[i];
      dx[i] *= gamma[i];
    }
    if (params.dpixels == nullptr) continue;
    normalise_backward<Row::kCount>(groups, rstd, xhat, dx);
    store_lane_row<Dtype, kWidth>(params.dpixels, row, dx);
  }
  if (params.partials == nullptr) return;
  block_store_sums<kWidth>(dgamma, params.partials);
  block_store_sums<kWidth>(dbeta, params.partials + int64_t{num_blocks()} * kWidth);
}

}  // namespace tnt_kernels::cuda
