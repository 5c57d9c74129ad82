// Z = Z + LN2(FC(LN1(Vec(Y)))) on the patch rows, Eq. 8, in one kernel.
//
// A block takes kRows patches and all kWidth columns. Its warps normalise the rows into shared
// memory, as left operands; then each multiplies all of them with the columns that are its own,
// which it streams from the packed weights: no two warps of a block read the same ones. The sums go
// through shared memory, kHalfRows rows at a time, so that LN2 and the sum with the tokens are done
// row by row, by one warp each.
//
// Columns of two tiles are dealt so that a lane has 4 neighbouring ones, and the summed dimension
// so that a lane's share of a step is 4 neighbouring elements of a row.
#pragma once

#include "cuda/pixel_to_patch/lane_row.cuh"
#include "cuda/pixel_to_patch/params.h"
#include "cuda/tile/layer_norm.cuh"
#include "cuda/tile/own_math.cuh"

namespace tnt_kernels::cuda {

// bf16 tensors are multiplied in bf16: weights times LN1's may be beyond what fp16 holds.
template <class Dtype>
struct PatchMath {
  using Math = typename Dtype::Math;
};

template <>
struct PatchMath<BFloat16> {
  using Math = BrainOperands;
};

template <class Dtype_, int kWidth_>
struct PatchConfig {
  using Dtype = Dtype_;
  using Math = typename PatchMath<Dtype>::Math;
  static constexpr int kWidth = kWidth_, kUnitWords = Math::kUnitWords;
  static constexpr int kRows = kUnitWords == 1 ? 64 : 32, kRowTiles = kRows / 16;
  static constexpr int kSteps = kWidth / 16;
  static constexpr int kColumns = kWidth / kPatchWarps, kPairs = kColumns / 16;  // of a warp

  // A step of a row tile in shared memory; the pad spreads a row's steps on the banks.
  static constexpr int kStepWords = 32 * 4 * kUnitWords + 16;
  static constexpr int kOperandWords = kRowTiles * kSteps * kStepWords;
  static constexpr int kSharedBytes = 4 * kOperandWords;

  // Rows of sums take the place of the operands; the pad is for the banks again.
  static constexpr int kHalfRows = 32, kSumWords = kWidth + 16;
  static_assert(kHalfRows * kSumWords <= kOperandWords, "sums must fit");

  // Two units of row g + 8 half of a lane's share.
  static TNT_DEVICE int place(int lane, int half) {
    return kUnitWords == 1 ? 4 * lane + 2 * half : 128 * half + 4 * lane;
  }
};

// Words of the packed weights: [warp][step][pair of tiles][lane]: [tile][two units].
template <class Config>
TNT_DEVICE int packed_word(int column, int k) {
  const int warp = column / Config::kColumns, in_warp = column % Config::kColumns;
  const int pair = in_warp / 16, quad = in_warp % 16 / 4, tile = in_warp % 4 / 2;
  const int lane = (2 * quad + in_warp % 2) * 4 + k % 16 / 4;
  const int item = ((warp * Config::kSteps + k / 16) * Config::kPairs + pair) * 32 + lane;
  return (item * 2 + tile) * 2 * Config::kUnitWords;
}

// LN1's affine part goes into the weights and the bias. A warp packs a column, its lanes 4
// neighbouring elements at a time.
template <class Config>
TNT_DEVICE void pixel_to_patch_pack_body(const PatchPack& params) {
  using Math = typename Config::Math;
  constexpr int kWidth = Config::kWidth;
  const int warps = block_threads() / 32;
  for (int n = block_id() * warps + warp_id(); n < kWidth; n += num_blocks() * warps) {
    float bias = 0;
#pragma unroll 1
    for (int k = 4 * lane_id(); k < kWidth; k += 4 * 32) {
      float w[4];
      for (int i = 0; i < 4; ++i) {
        const int column = (k + i) % params.norm1_width;
        const float weight = weight_at(params.proj_weight, n, k + i);
        bias = fma_f32(weight, weight_at(params.norm1_bias, column), bias);
        w[i] = weight * weight_at(params.norm1_weight, column);
      }
      uint32_t* target = params.weights + packed_word<Config>(n, k);
      store_words(target, Math::unit(w[0], w[1]));
      store_words(target + Config::kUnitWords, Math::unit(w[2], w[3]));
    }
    bias = warp_row_sum(bias);
    bias += warp_shuffle_xor<4>(bias);
    bias += warp_shuffle_xor<8>(bias);
    bias += warp_shuffle_xor<16>(bias);
    if (params.proj_bias.data != nullptr) bias += weight_at(params.proj_bias, n);
    const bool has_norm2 = params.norm2_weight.data != nullptr;
    const float gamma = has_norm2 ? weight_at(params.norm2_weight, n) : 1.0f;
    const float beta = has_norm2 ? weight_at(params.norm2_bias, n) : 0.0f;
    if (lane_id() == 0) {
      store_words(params.vectors + n, Words<1>{{as_word(bias)}});
      store_words(params.vectors + kWidth + n, Words<1>{{as_word(gamma)}});
      store_words(params.vectors + 2 * kWidth + n, Words<1>{{as_word(beta)}});
    }
  }
}

// LN1 of kBatch rows at a time, without its affine part. Rows that do not exist take the place of
// the last that does.
template <class Config>
TNT_DEVICE void warp_normalise_rows(const PatchForward& params, int64_t first, uint32_t* operands) {
  using Dtype = typename Config::Dtype;
  using Math = typename Config::Math;
  using Row = LaneRow<Config::kWidth>;
  constexpr int kBatch = 4;
  const RowGroups groups(Config::kWidth, params.norm1_width);
#pragma unroll 1
  for (int begin = warp_id(); begin < Config::kRows; begin += kBatch * kPatchWarps) {
    RowUnit<Dtype> units[kBatch][Row::kUnits];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t row = first + begin + i * kPatchWarps;
      load_lane_row<Dtype, Config::kWidth>(
          params.pixels, row < params.num_patches ? row : params.num_patches - 1, units[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = begin + i * kPatchWarps;
      float x[Row::kCount];
      unpack_lane_row<Dtype, Config::kWidth>(units[i], x);
      normalise<Row::kCount>(groups, params.eps, x);
      uint32_t* tile = operands + row / 16 * (Config::kSteps * Config::kStepWords);
#pragma unroll
      for (int u = 0; u < Row::kUnits; ++u) {
        const int unit = lane_id() * Row::kUnits + u;
        const typename Math::Unit pair[2] = {Math::unit(x[4 * u], x[4 * u + 1]),
                                             Math::unit(x[4 * u + 2], x[4 * u + 3])};
        Words<2 * Config::kUnitWords> words;
#pragma unroll
        for (int w = 0; w < 2 * Config::kUnitWords; ++w) {
          words.w[w] = pair[w / Config::kUnitWords].w[w % Config::kUnitWords];
        }
        store_words(tile + unit / 4 * Config::kStepWords +
                        Config::place(row % 8 * 4 + unit % 4, row / 8 % 2),
                    words);
      }
    }
  }
}

template <class Config>
struct PatchProduct {
  using Dtype = typename Config::Dtype;
  using Math = typename Config::Math;
  static constexpr int kRowTiles = Config::kRowTiles, kPairs = Config::kPairs;
  static constexpr int kUnitWords = Config::kUnitWords, kWidth = Config::kWidth;

  float sum[kRowTiles][2 * kPairs][4] = {};

  TNT_DEVICE void multiply(const uint32_t* operands, const uint32_t* weights) {
    constexpr int kLoad = 2 * kUnitWords;  // words that belong to a tile
    const uint32_t* next =
        weights + (warp_id() * Config::kSteps * kPairs * 32 + lane_id()) * 2 * kLoad;
    const int lane = lane_id();
#pragma unroll 1
    for (int step = 0; step < Config::kSteps; ++step) {
      typename Math::Unit b[2 * kPairs][2];
#pragma unroll
      for (int i = 0; i < kPairs * kUnitWords; ++i) {
        const Words<4> words =
            load_words<4>(next + i / kUnitWords * 64 * kLoad + i % kUnitWords * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int word = 4 * i + e;  // of the lane's 4 kUnitWords kPairs
          b[word / kLoad][word % kLoad / kUnitWords].w[word % kUnitWords] = words.w[e];
        }
      }
      next += kPairs * 64 * kLoad;
      const uint32_t* place = operands + step * Config::kStepWords;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        typename Math::Tile a[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto words = load_words<kLoad>(place + Config::place(lane, half));
#pragma unroll
          for (int w = 0; w < kLoad; ++w) {
            a[w / kUnitWords].rows[half].w[w % kUnitWords] = words.w[w];
          }
        }
        place += Config::kSteps * Config::kStepWords;
#pragma unroll
        for (int n = 0; n < 2 * kPairs; ++n) Math::mma(sum[m][n], a[0], a[1], b[n][0], b[n][1]);
      }
    }
  }

  // The first of a lane's 4 columns of a pair of tiles.
  static TNT_DEVICE int column(int pair) {
    return warp_id() * Config::kColumns + 16 * pair + lane_id() % 4 * 4;
  }

  // Writes rows [first, first + kHalfRows) of the block with the bias.
  template <int kFirst>
  TNT_DEVICE void store_rows(const float* bias, uint32_t* rows) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const Words<4> b = load_words<4>(bias + column(pair));
#pragma unroll
      for (int j = 0; j < Config::kHalfRows / 8; ++j) {
        const int tile = kFirst / 16 + j / 2;
        Words<4> words;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float z = sum[tile][2 * pair + i / 2][j % 2 * 2 + i % 2] + as_float(b.w[i]);
          words.w[i] = as_word(z);
        }
        store_words(rows + (8 * j + lane_id() / 4) * Config::kSumWords + column(pair), words);
      }
    }
  }
};

// The row of a patch among the tokens: every image begins with its class token.
TNT_DEVICE int64_t token_row(int64_t patch, int patches_per_image) {
  return patch + static_cast<uint32_t>(patch) / static_cast<uint32_t>(patches_per_image) + 1;
}

// x becomes vectors[1] x + vectors[2], LN2's affine part.
template <int kWidth>
TNT_DEVICE void scale_and_shift(const float* vectors, float (&x)[LaneRow<kWidth>::kCount]) {
  using Row = LaneRow<kWidth>;
#pragma unroll
  for (int u = 0; u < Row::kUnits; ++u) {
    const Words<4> gamma = load_words<4>(vectors + kWidth + Row::column(4 * u));
    const Words<4> beta = load_words<4>(vectors + 2 * kWidth + Row::column(4 * u));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[4 * u + i] = fma_f32(x[4 * u + i], as_float(gamma.w[i]), as_float(beta.w[i]));
    }
  }
}

// What is left to do for one patch, whose sums are `row`; Type is that of tokens and out.
template <class Config, class Type>
TNT_DEVICE void warp_finish_row(const PatchForward& params, int64_t patch, const uint32_t* row) {
  using Dtype = typename Config::Dtype;
  constexpr int kWidth = Config::kWidth;
  using Row = LaneRow<kWidth>;
  const bool has_tokens = params.tokens != nullptr;
  const int64_t target = has_tokens ? token_row(patch, params.patches_per_image) : patch;
  RowUnit<Type> token[Row::kUnits] = {};
  if (has_tokens) load_lane_row<Type, kWidth>(params.tokens, target, token);
  float z[Row::kCount], sum[Row::kCount];
#pragma unroll
  for (int u = 0; u < Row::kUnits; ++u) {
    const Words<4> words = load_words<4>(row + Row::column(4 * u));
#pragma unroll
    for (int i = 0; i < 4; ++i) z[4 * u + i] = as_float(words.w[i]);
  }
  if (params.projection != nullptr) store_lane_row<Dtype, kWidth>(params.projection, patch, z);
  if (params.has_norm2) {
    normalise<Row::kCount>(RowGroups(kWidth, kWidth), params.eps, z);
    scale_and_shift<kWidth>(params.vectors, z);
  }
  unpack_lane_row<Type, kWidth>(token, sum);
#pragma unroll
  for (int i = 0; i < Row::kCount; ++i) sum[i] = has_tokens ? sum[i] + z[i] : z[i];
  store_lane_row<Type, kWidth>(params.out, target, sum);
  if (has_tokens && patch % params.patches_per_image == 0) {  // the class token stands in front
    load_lane_row<Type, kWidth>(params.tokens, target - 1, token);
    unpack_lane_row<Type, kWidth>(token, sum);
    store_lane_row<Type, kWidth>(params.out, target - 1, sum);
  }
}

template <class Config>
TNT_DEVICE void warp_finish_rows(const PatchForward& params, int64_t first, const uint32_t* rows) {
#pragma unroll 1
  for (int i = warp_id(); i < Config::kHalfRows; i += kPatchWarps) {
    if (first + i >= params.num_patches) continue;
    with_type(params.tokens_type, [&](auto type) {
      warp_finish_row<Config, decltype(type)>(params, first + i, rows + i * Config::kSumWords);
    });
  }
}

template <class Config>
TNT_DEVICE void pixel_to_patch_fwd_body(const PatchForward& params) {
  constexpr int kHalfRows = Config::kHalfRows;
  uint32_t* shared = dynamic_shared();
  const int64_t first = int64_t{block_id()} * Config::kRows;
  warp_normalise_rows<Config>(params, first, shared);
  block_sync();
  PatchProduct<Config> product;
  product.multiply(shared, params.weights);
  block_sync();
  product.template store_rows<0>(params.vectors, shared);
  block_sync();
  warp_finish_rows<Config>(params, first, shared);
  if constexpr (Config::kRows > kHalfRows) {
    block_sync();
    product.template store_rows<kHalfRows>(params.vectors, shared);
    block_sync();
    warp_finish_rows<Config>(params, first + kHalfRows, shared);
  }
}

}  // namespace tnt_kernels::cuda
