// y' = x + MSA(LN(x)), y = y' + MLP(LN(y')), Eqs. 6-7. One warp takes kTiles tiles of 16 tokens
// through the whole block in registers; blocks share nothing but the packed weights.
#pragma once

#include "cuda/inner_block/config.cuh"
#include "cuda/inner_block/wide_range.cuh"

namespace tnt_kernels::cuda {

// The tiles of a warp: where they are in memory and which of their rows exist.
template <class Config>
struct WarpRows {
  using Row = typename Config::Row;
  static constexpr int kRowWords = Config::kDim / 2 * Config::Dtype::kPairWords;
  static constexpr int kPatches = 16 * Config::kTiles / Config::kTokens;

  int64_t first_patch;
  int num_rows;  // that exist, from the first patch on; at least 1

  TNT_DEVICE WarpRows(int64_t group, int64_t total_patches) : first_patch(group * kPatches) {
    const int64_t left = total_patches - first_patch;
    num_rows = (left < kPatches ? static_cast<int>(left) : kPatches) * Config::kTokens;
  }

  // Tiles are whole or missing, unless they hold several patches.
  TNT_DEVICE bool exists(int tile, int half) const {
    if constexpr (Config::kTokens >= 16) return 16 * tile < num_rows;
    return 16 * tile + 8 * half + lane_id() / 4 < num_rows;
  }

  // Rows that do not exist take the place of rows that do: they are read, never stored.
  TNT_DEVICE int row_word(int tile, int half) const {
    if constexpr (Config::kTokens >= 16) {
      return (exists(tile, half) ? 16 * tile : 0) * kRowWords +
             (8 * half + lane_id() / 4) * kRowWords;
    }
    return exists(tile, half) ? (16 * tile + 8 * half + lane_id() / 4) * kRowWords : 0;
  }

  TNT_DEVICE void load(const void* x, float (&y)[Config::kTiles][Row::kTiles][4]) const {
    const uint32_t* base =
        static_cast<const uint32_t*>(x) + first_patch * (Config::kTokens * kRowWords);
#pragma unroll
    for (int i = 0; i < Config::kTiles; ++i) {
      load_row<typename Config::Dtype, Config::kDim, 0>(base + row_word(i, 0), y[i]);
      load_row<typename Config::Dtype, Config::kDim, 1>(base + row_word(i, 1), y[i]);
    }
  }

  TNT_DEVICE void store(void* y, const float (&x)[Config::kTiles][Row::kTiles][4]) const {
    uint32_t* base = static_cast<uint32_t*>(y) + first_patch * (Config::kTokens * kRowWords);
#pragma unroll
    for (int i = 0; i < Config::kTiles; ++i) {
      if (exists(i, 0)) {
        store_row<typename Config::Dtype, Config::kDim, 0>(base + row_word(i, 0), x[i]);
      }
      if (exists(i, 1)) {
        store_row<typename Config::Dtype, Config::kDim, 1>(base + row_word(i, 1), x[i]);
      }
    }
  }

  // The factor of this lane's two rows of each tile.
  TNT_DEVICE void load_scale(const float* drop_path, float (&scale)[Config::kTiles][2]) const {
#pragma unroll
    for (int i = 0; i < 2 * Config::kTiles; ++i) scale[i / 2][i % 2] = 1.0f;
    if (drop_path == nullptr) return;
    drop_path += first_patch;
#pragma unroll
    for (int i = 0; i < 2 * Config::kTiles; ++i) {
      const int tile = i / 2, half = i % 2;
      int patch = 16 * tile / Config::kTokens;
      if constexpr (Config::kTokens < 16) patch += (8 * half + lane_id() / 4) / Config::kTokens;
      if (exists(tile, half)) scale[tile][half] = load_float(drop_path + patch);
    }
  }
};

// x += scale * proj(MSA(LN(x)))
template <class Config>
TNT_DEVICE void warp_attention_half(const uint32_t* weights, float eps,
                                    const float (&scale)[Config::kTiles][2],
                                    float (&x)[Config::kTiles][Config::kInputs][4]) {
  using Math = typename Config::Math;
  constexpr int kTiles = Config::kTiles, kInputs = Config::kInputs, kGroups = Config::kGroups;
  typename Math::Tile normed[kTiles][kInputs];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    warp_layer_norm<typename Config::Row, Config::kDim, Math>(x[i], eps, normed[i]);
  }
  float branch[kTiles][kInputs][4] = {};
  float (&sum)[kTiles][kInputs][4] = Math::kSumsOntoResidual ? x : branch;
  if constexpr (!Config::kPadCarriesBias) {
    WeightStream<Math> stream(weights, Config::kProjBias);
#pragma unroll
    for (int j = 0; j < 4 * kInputs; ++j) {
      const float bias = stream.number();
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        sum[i][j / 4][j % 4] = fma_f32(scale[i][j % 4 / 2], bias, sum[i][j / 4][j % 4]);
      }
    }
  }
#pragma unroll Config::kUnrollSteps
  for (int step = 0; step < Config::kSteps; ++step) {
    WeightStream<Math> stream(weights, step * Config::kStepWords);
    QueryKeyValue<Math, kGroups> qkv[kTiles];
    warp_project_qkv(stream, normed, qkv);
    typename Math::Tile heads[kTiles][kGroups];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int head = 0; head < Config::kStepHeads; ++head) {
        warp_attend<Math, Config::kTokens, Config::kHeadGroups, Config::kKeyTiles>(
            qkv[i], qkv + i / Config::kKeyTiles * Config::kKeyTiles, head * Config::kHeadGroups,
            scale[i], heads[i]);
      }
    }
#pragma unroll
    for (int n = 0; n < kInputs; ++n) {
      typename Math::Unit w[kGroups];
      stream.units(w);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) multiply_add<Math>(sum[i][n], heads[i], w);
    }
  }
  if constexpr (!Math::kSumsOntoResidual) {
#pragma unroll
    for (int j = 0; j < kTiles * kInputs * 4; ++j) {
      const int i = j / 4 / kInputs, n = j / 4 % kInputs, e = j % 4;
      x[i][n][e] += branch[i][n][e];
    }
  }
}

// x += scale * fc2(GELU(fc1(LN(x))))
template <class Config>
TNT_DEVICE void warp_mlp_half(const uint32_t* weights, float eps,
                              const float (&scale)[Config::kTiles][2],
                              float (&x)[Config::kTiles][Config::kInputs][4]) {
  using Math = typename Config::Math;
  constexpr int kTiles = Config::kTiles, kInputs = Config::kInputs, kChunk = Config::kChunkGroups;
  typename Math::Tile normed[kTiles][kInputs];
  float y[kTiles][kInputs][4];
  WeightStream<Math> bias_stream(weights, Config::kFc2Bias);
#pragma unroll
  for (int j = 0; j < 4 * kInputs; ++j) {
    const float bias = bias_stream.number();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) y[i][j / 4][j % 4] = bias;
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    warp_layer_norm<typename Config::Row, Config::kDim, Math>(x[i], eps, normed[i]);
  }
#pragma unroll Config::kUnrollChunks
  for (int chunk = 0; chunk < Config::kChunks; ++chunk) {
    WeightStream<Math> stream(weights, Config::kFirstChunk + chunk * Config::kChunkWords);
    typename Math::Tile hidden[kTiles][kChunk];
    warp_linear<Math, kChunk, true>(stream, normed, [&](int i, int h, const auto& acc) {
      hidden[i][h] = Gelu<Math>::apply(acc);
    });
#pragma unroll
    for (int n = 0; n < kInputs; ++n) {
      typename Math::Unit w[kChunk];
      stream.units(w);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) multiply_add<Math>(y[i][n], hidden[i], w);
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles * kInputs * 4; ++j) {
    const int i = j / 4 / kInputs, n = j / 4 % kInputs, e = j % 4;
    x[i][n][e] = fma_f32(scale[i][e / 2], y[i][n][e], x[i][n][e]);
  }
}

template <class Config>
TNT_DEVICE const uint32_t* block_weights(const uint32_t* packed) {
  if constexpr (!Config::kWeightsInShared) return packed;
  uint32_t* weights_smem = dynamic_shared();
  for (int i = thread_id() * 4; i < Config::kPackedWords; i += block_threads() * 4) {
    store_words(weights_smem + i, load_words<4>(packed + i));
  }
  block_sync();
  return weights_smem;
}

template <class Config>
TNT_DEVICE void inner_block_fwd_body(const ForwardParams& params) {
  if constexpr (Config::kMayLeaveRange) {
    if (load_words<1>(params.weights + Config::kPackedWords).w[0] != 0) {
      wide_range_fwd_body<Config>(params);
      return;
    }
  }
  const uint32_t* weights = block_weights<Config>(params.weights);
  constexpr int kPatches = WarpRows<Config>::kPatches;
  const int64_t num_groups = (params.num_patches + kPatches - 1) / kPatches;
  const int64_t stride = static_cast<int64_t>(num_blocks()) * Config::kWarps;
  for (int64_t group = static_cast<int64_t>(block_id()) * Config::kWarps + warp_id();
       group < num_groups; group += stride) {
    const WarpRows<Config> rows(group, params.num_patches);
    float x[Config::kTiles][Config::kInputs][4], scale[Config::kTiles][2];
    rows.load(params.x, x);
    if (params.has_attention) {
      rows.load_scale(params.drop_path_attn, scale);
      warp_attention_half<Config>(weights, params.eps, scale, x);
      if (params.mid != nullptr) rows.store(params.mid, x);
    }
    if (params.has_mlp) {
      rows.load_scale(params.drop_path_mlp, scale);
      warp_mlp_half<Config>(weights, params.eps, scale, x);
    }
    rows.store(params.out, x);
  }
}

}  // namespace tnt_kernels::cuda
