// The rows of x and its gradients that a warp of a backward kernel takes.
#pragma once

#include "cuda/inner_block/backward_config.cuh"

namespace tnt_kernels::cuda {

// A tile of 16 rows, of which some may be past the end: those are read from a row that exists and
// have no gradient.
template <class Config>
struct BackwardRows {
  using Row = typename Config::Row;
  using Dtype = typename Config::Dtype;
  static constexpr int kRowWords = Config::kDim / 2 * Dtype::kPairWords;

  int tile;
  int count;  // of rows that exist, at least 1

  TNT_DEVICE BackwardRows(int tile, int64_t total) : tile(tile), count(16) {
    if constexpr (Config::kTokens % 16 != 0) {
      const int64_t left = total - static_cast<int64_t>(tile) * 16;
      count = left < 16 ? static_cast<int>(left) : 16;
    }
  }

  TNT_DEVICE int64_t first_word() const { return static_cast<int64_t>(tile) * (16 * kRowWords); }

  // Tiles are whole, unless they hold several sequences.
  TNT_DEVICE bool exists(int half) const {
    if constexpr (Config::kTokens % 16 == 0) return true;
    return 8 * half + lane_id() / 4 < count;
  }

  TNT_DEVICE int row_word(int half) const {
    return exists(half) ? (8 * half + lane_id() / 4) * kRowWords : 0;
  }

  TNT_DEVICE void load(const void* x, float (&y)[Config::kInputs][4]) const {
    const uint32_t* base = static_cast<const uint32_t*>(x) + first_word();
    load_row<Dtype, Config::kDim, 0>(base + row_word(0), y);
    load_row<Dtype, Config::kDim, 1>(base + row_word(1), y);
  }

  TNT_DEVICE void store(void* y, const float (&x)[Config::kInputs][4]) const {
    uint32_t* base = static_cast<uint32_t*>(y) + first_word();
    if (exists(0)) store_row<Dtype, Config::kDim, 0>(base + row_word(0), x);
    if (exists(1)) store_row<Dtype, Config::kDim, 1>(base + row_word(1), x);
  }

  TNT_DEVICE int64_t patch(int half) const {
    const auto at = static_cast<uint64_t>(tile);
    if constexpr (Config::kTokens % 16 == 0) return at / (Config::kTokens / 16);
    return at * (16 / Config::kTokens) + (8 * half + lane_id() / 4) / Config::kTokens;
  }

  // Gradient of the branch: dy times the row's drop-path factor, 0 for rows past the end.
  TNT_DEVICE void scale(const float* drop_path, const float (&dy)[Config::kInputs][4],
                        float (&branch)[Config::kInputs][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float factor = 1.0f;
      if (drop_path != nullptr && exists(half)) factor = load_float(drop_path + patch(half));
#pragma unroll
      for (int k = 0; k < Config::kInputs; ++k) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          branch[k][i] = exists(half) ? factor * dy[k][i] : 0.0f;
        }
      }
    }
  }
};

// The 16 tokens of a tile as both operands that products need: tokens as rows, and as columns.
template <class Config>
struct TokenOperands {
  using Math = typename Config::Math;
  typename Math::Tile rows[Config::kInputs];
  typename Math::Unit columns[Config::kInputs][2];  // [channels][8 tokens each]

  TNT_DEVICE void set(const float (&x)[Config::kInputs][4]) {
#pragma unroll
    for (int k = 0; k < Config::kInputs; ++k) rows[k] = Math::tile(x[k]);
  }

  // From the rows.
  TNT_DEVICE void set_columns() {
#pragma unroll
    for (int k = 0; k < Config::kInputs; ++k) {
      columns[k][0] = warp_transpose(rows[k].rows[0]);
      columns[k][1] = warp_transpose(rows[k].rows[1]);
    }
  }
};

// Turns dy into dx: adds the gradient of LayerNorm, given that of its result. The result is taken
// as the products had it, which costs no registers in between.
template <class Config>
TNT_DEVICE void add_norm_gradient(const TokenOperands<Config>& x,
                                  const float (&dnormed)[Config::kInputs][4],
                                  const float (&rstd)[2], float (&dy)[Config::kInputs][4]) {
  float normed[Config::kInputs][4];
#pragma unroll
  for (int i = 0; i < 2 * Config::kInputs; ++i) {
    const FloatPair pair = Config::Math::unpack(x.rows[i / 2].rows[i % 2]);
    normed[i / 2][2 * (i % 2)] = pair.lo;
    normed[i / 2][2 * (i % 2) + 1] = pair.hi;
  }
  warp_normalize_bwd<typename Config::Row, Config::kDim>(normed, dnormed, rstd, dy);
}

// Adds the columns' sums over the rows g and g + 8.
template <int kTiles>
TNT_DEVICE void add_columns(const float (&x)[kTiles][4], float (&sums)[kTiles][2]) {
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) sums[i / 2][i % 2] += x[i / 2][i % 2] + x[i / 2][i % 2 + 2];
}

// The operands of a tile, without columns; adds its gradients to sums.
template <class Config>
TNT_DEVICE void load_operands(const BackwardRows<Config>& rows, const BackwardParams& params,
                              TokenOperands<Config>& x, TokenOperands<Config>& dz, float (&rstd)[2],
                              float (&dy)[Config::kInputs][4], ColumnSums<Config::kInputs>& sums) {
  float input[Config::kInputs][4];
  float normed[Config::kInputs][4], branch[Config::kInputs][4];
  rows.load(params.x, input);
  rows.load(params.dy, dy);
  warp_normalize<typename Config::Row, Config::kDim>(input, params.eps, normed, rstd);
  rows.scale(params.drop_path, dy, branch);
  x.set(normed);
  dz.set(branch);
  add_columns(branch, sums.sum);
}

// dx of a tile, in place of its dy.
template <class Config>
TNT_DEVICE void store_dx(const BackwardRows<Config>& rows, const BackwardParams& params,
                         const TokenOperands<Config>& x, const float (&dnormed)[Config::kInputs][4],
                         const float (&rstd)[2], float (&dy)[Config::kInputs][4]) {
  add_norm_gradient(x, dnormed, rstd, dy);
  rows.store(params.dx, dy);
}

// Where a warp's groups of rows begin and how far apart they are, for one slice of the sums.
template <class Config>
struct Share {
  const BackwardParams& params;
  int slice, worker;

  // Without sums there is one slice.
  TNT_DEVICE Share(const BackwardParams& params, bool want_dw)
      : params(params),
        slice(want_dw ? block_id() % Config::kSlices : 0),
        worker(want_dw ? block_id() / Config::kSlices : block_id()) {}

  TNT_DEVICE int first() const { return worker * Config::kWarps + warp_id(); }
  TNT_DEVICE int stride() const { return params.workers * Config::kWarps; }
  TNT_DEVICE float* partial() const { return params.partials + worker * int64_t{Config::kSums}; }
};

// The tiles of a block whose warps take one each, and the next, and so on.
template <class Config>
struct BlockShare {
  int first;  // of this turn
  int stride, num_groups;

  TNT_DEVICE BlockShare(const BackwardParams& params, int num_groups)
      : first(block_id() * Config::kWarps),
        stride(params.workers * Config::kWarps),
        num_groups(num_groups) {}

  TNT_DEVICE int left() const { return num_groups - first; }
  TNT_DEVICE void next() { first += stride; }
};

template <class Config>
TNT_DEVICE const uint32_t* backward_weights(const uint32_t* packed) {
  if constexpr (!Config::kWeightsInShared) return packed;
  uint32_t* weights_smem = dynamic_shared();
  for (int i = thread_id() * 4; i < Config::kPackedWords; i += block_threads() * 4) {
    store_words(weights_smem + i, load_words<4>(packed + i));
  }
  block_sync();
  return weights_smem;
}

}  // namespace tnt_kernels::cuda
