// Writes the sums of a slice, once added up over a block, where the partial of its worker has them.
#pragma once

#include "cuda/inner_block/backward_rows.cuh"

namespace tnt_kernels::cuda {

// Those of columns: a bias's gradient.
template <class Config>
TNT_DEVICE void write_column_sums(const ColumnSums<Config::kInputs>& sums, float* out) {
#pragma unroll
  for (int i = 0; i < 2 * Config::kInputs; ++i) {
    const float sum = warp_column_sum(sums.sum[i / 2][i % 2]);
    const int channel = Config::Row::channel(i / 2, lane_id() % 4 * 2 + i % 2);
    if (lane_id() < 4 && channel < Config::kDim) store_float(out + channel, sum);
  }
}

// Row of a weight that is feature `index` of a group of a step; kDim for a pad.
template <class Config>
TNT_DEVICE int attention_weight_row(int step, int group, int index) {
  const int in_head = group % Config::kHeadGroups * 8 + index;
  const int head = step * Config::kStepHeads + group / Config::kHeadGroups;
  return group < Config::kGroups && in_head < Config::kHeadDim ? head * Config::kHeadDim + in_head
                                                               : Config::kDim;
}

template <class Config>
TNT_DEVICE void write_mlp_sums(typename Config::Values& sums, int slice, float* partial) {
  const int row = lane_id() / 4, column = lane_id() % 4 * 2;
#pragma unroll
  for (int c = 0; c < Config::kSliceChunks; ++c) {
    const int first = (slice * Config::kSliceChunks + c) * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float bias = sums.fc1_bias[c][half];
      bias = warp_row_sum(bias);
      const int unit = first + 8 * half + row;
      if (unit >= Config::kHidden) continue;
#pragma unroll
      for (int i = 0; i < 2 * Config::kInputs; ++i) {
        const int channel = Config::Row::channel(i / 2, column + i % 2);
        if (channel >= Config::kDim) continue;
        const int at = unit * Config::kDim + channel;
        store_float(partial + Config::kFc1Sum + at, sums.fc1[c][i / 2][2 * half + i % 2]);
        store_float(partial + Config::kFc2Sum + at, sums.fc2[c][i / 2][2 * half + i % 2]);
      }
      if (column == 0) store_float(partial + Config::kFc1BiasSum + unit, bias);
    }
  }
  if (slice == 0) write_column_sums<Config>(sums.fc2_bias, partial + Config::kFc2BiasSum);
}

template <class Config>
TNT_DEVICE void write_attention_sums(typename Config::Values& sums, float* partial) {
  const int row = lane_id() / 4, column = lane_id() % 4 * 2;
#pragma unroll
  for (int i = 0; i < Config::kSteps * Config::kPairs * 2; ++i) {
    const int step = i / 2 / Config::kPairs, pair = i / 2 % Config::kPairs, half = i % 2;
    const int feature = attention_weight_row<Config>(step, 2 * pair + half, row);
#pragma unroll
    for (int j = 0; j < Config::kMatrices * 2 * Config::kInputs; ++j) {
      const int m = j / 2 / Config::kInputs, n = j / 2 % Config::kInputs;
      const int channel = Config::Row::channel(n, column + j % 2);
      if (feature >= Config::kDim || channel >= Config::kDim) continue;
      store_float(partial + (m * Config::kDim + feature) * Config::kDim + channel,
                  sums.matrix[step][pair][m][n][2 * half + j % 2]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float bias = warp_column_sum(sums.q_bias[step][pair][half][j]);
      const int of_bias = attention_weight_row<Config>(step, 2 * pair + half, column + j);
      if (row == 0 && of_bias < Config::kDim) {
        store_float(partial + Config::kQueryBiasSum + of_bias, bias);
      }
    }
  }
  write_column_sums<Config>(sums.proj_bias, partial + Config::kProjBiasSum);
}

}  // namespace tnt_kernels::cuda
