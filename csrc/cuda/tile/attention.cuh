// Attention among the tokens of a sequence, in registers (Eqs. 1 and 2).
//
// A step takes kGroups groups of 8 features: one head, or two whose groups together fill tiles of
// 16. A head of head_dim features has ceil(head_dim / 8) groups, the last padded.
#pragma once

#include "cuda/tile/layer_norm.cuh"
#include "cuda/tile/linear.cuh"

namespace tnt_kernels::cuda {

// What one tile of 16 tokens contributes to a step. Values are transposed: rows are features,
// columns tokens, so that they are the right operand of the product with the probabilities.
template <class Math, int kGroups>
struct QueryKeyValue {
  static constexpr int kValueTiles = (kGroups + 1) / 2;
  typename Math::Tile q[kGroups], k[kGroups];
  typename Math::Tile v[kValueTiles][2];  // [16 features][8 tokens each]
};

template <class Math, int kGroups, int kTiles, int kInputs>
TNT_DEVICE void warp_project_qkv(WeightStream<Math>& weights,
                                 const typename Math::Tile (&x)[kTiles][kInputs],
                                 QueryKeyValue<Math, kGroups> (&qkv)[kTiles]) {
  warp_linear<Math, kGroups, true>(
      weights, x, [&](int i, int f, const auto& acc) { qkv[i].q[f] = Math::finish(acc); });
  // a bias of k adds the same to every score of a query
  warp_linear<Math, kGroups, false>(
      weights, x, [&](int i, int f, const auto& acc) { qkv[i].k[f] = Math::finish(acc); });
#pragma unroll
  for (int m = 0; m < QueryKeyValue<Math, kGroups>::kValueTiles; ++m) {
    typename Math::Tile w[kInputs];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
      w[k].rows[0] = weights.unit();
      w[k].rows[1] = weights.unit();
    }
    const typename Math::Unit lower = weights.unit(), upper = weights.unit();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        typename Math::Unit tokens[kInputs];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) tokens[k] = x[i][k].rows[half];
        typename Math::Acc sum = Math::start(lower, upper);
        multiply_add<Math>(sum, w, tokens);
        qkv[i].v[m][half] = Math::finish(sum);
      }
    }
  }
}

// Whether query and key of element i of this half of a tile's scores are of one sequence.
template <int kTokens>
TNT_DEVICE bool same_sequence(int half, int i) {
  const int row = lane_id() / 4, column = lane_id() % 4 * 2;  // and column + 1 alike
  return (row + i / 2 * 8) / kTokens == (column + half * 8) / kTokens;
}

// A tile with several sequences: scores across them count as -inf, and values are made finite, so
// that what is not a number in one sequence stays there (its own probabilities are NaN).
template <int kTokens>
TNT_DEVICE void mask_other_sequences(float (&scores)[2][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool same = same_sequence<kTokens>(half, i);
      if (!same) scores[half][i] = as_float(0xff800000u);
    }
  }
}

// Probabilities from scores in units of log2(e), rows of kKeyTiles x 16 keys; not yet divided by
// their sums.
template <class Math, int kKeyTiles>
TNT_DEVICE void warp_softmax(const float (&scores)[kKeyTiles][2][4],
                             typename Math::Tile (&p)[kKeyTiles][2]) {
  float largest[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    largest[row] = scores[0][0][2 * row];
#pragma unroll
    for (int j = 0; j < 4 * kKeyTiles; ++j) {
      largest[row] = max_f32(largest[row], scores[j / 4][j / 2 % 2][2 * row + j % 2]);
    }
    largest[row] = warp_row_max(largest[row]);
  }
#pragma unroll
  for (int j = 0; j < 2 * kKeyTiles; ++j) {
    float e[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) e[i] = exp2_approx(scores[j / 2][j % 2][i] - largest[i / 2]);
    p[j / 2][j % 2] = Math::tile(e);
  }
}

// o = softmax(q k^T) v of one head for one tile of queries; groups [first, first + kHeadGroups) of
// the step are the head's. scale multiplies the rows (g and g + 8) of the result.
template <class Math, int kTokens, int kHeadGroups, int kKeyTiles, int kGroups>
TNT_DEVICE void warp_attend(const QueryKeyValue<Math, kGroups>& query,
                            const QueryKeyValue<Math, kGroups>* keys, int first,
                            const float (&scale)[2], typename Math::Tile (&o)[kGroups]) {
  typename Math::Tile q[kHeadGroups], p[kKeyTiles][2];
  float scores[kKeyTiles][2][4] = {};
#pragma unroll
  for (int f = 0; f < kHeadGroups; ++f) q[f] = query.q[first + f];
#pragma unroll
  for (int j = 0; j < 2 * kKeyTiles; ++j) {
    typename Math::Unit k[kHeadGroups];
#pragma unroll
    for (int f = 0; f < kHeadGroups; ++f) k[f] = keys[j / 2].k[first + f].rows[j % 2];
    multiply_add<Math>(scores[j / 2][j % 2], q, k);
  }
  if constexpr (kTokens < 16) mask_other_sequences<kTokens>(scores[0]);
  warp_softmax<Math>(scores, p);

  // the sums of rows, from the probabilities as the product below sees them, in every column
  const typename Math::Unit ones = Math::unit(1.0f, 1.0f);
  float sums[4] = {};
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) Math::mma(sums, p[j][0], p[j][1], ones, ones);
  const float factor[2] = {scale[0] * rcp_approx(sums[0]), scale[1] * rcp_approx(sums[2])};

#pragma unroll
  for (int f = first; f < first + kHeadGroups; ++f) {
    float acc[4] = {};
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      typename Math::Unit v[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        v[half] = keys[j].v[f / 2][half].rows[f % 2];
        if constexpr (kTokens < 16) v[half] = Math::finite(v[half]);
      }
      Math::mma(acc, p[j][0], p[j][1], v[0], v[1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] *= factor[i / 2];
    o[f] = Math::tile(acc);
  }
}

}  // namespace tnt_kernels::cuda
