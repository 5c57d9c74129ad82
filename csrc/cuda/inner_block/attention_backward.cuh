// Gradient of y = x + MSA(LN(x)), Eq. 6: dx and, summed over all tokens, the weights' gradients.
// One warp takes a sequence of 16 tokens, a step of heads at a time, in registers.
//
// With P the probabilities and dO the gradient of a head's output, dP = dO V^T and
//   dS = P (dP - rowsum(P dP)),   dQ = dS K,   dK = dS^T Q,   dV = P^T dO.
// Scores are in units of log2(e) with the softmax's scale inside Q; the packed weights and the
// finishing kernel make up for both (see query_grad_scale).
#pragma once

#include "cuda/inner_block/backward_rows.cuh"
#include "cuda/tile/attention.cuh"

namespace tnt_kernels::cuda {

// A step's features; tokens are rows.
template <class Config>
struct StepFeatures {
  using Tile = typename Config::Math::Tile;
  Tile q[Config::kGroups], k[Config::kGroups], v[Config::kGroups];
  Tile dout[Config::kGroups];
};

template <class Config>
struct StepGradients {
  using Tile = typename Config::Math::Tile;
  float q_bias[Config::kGroups][2];
  Tile out[Config::kGroups];  // of the forward
  Tile dq[Config::kGroups], dk[Config::kGroups], dv[Config::kGroups];
};

// Of q, k, v or the output (matrix 0 to 3); 0 for a group that does not exist.
template <class Config>
TNT_DEVICE typename Config::Math::Tile feature_gradient(const StepGradients<Config>& grad,
                                                        int matrix, int group) {
  if (group >= Config::kGroups) return {};
  return matrix == 0   ? grad.dq[group]
         : matrix == 1 ? grad.dk[group]
         : matrix == 2 ? grad.dv[group]
                       : grad.out[group];
}

template <class Config>
struct AttentionBackwardWarp {
  using Math = typename Config::Math;
  using Tile = typename Math::Tile;
  using Unit = typename Math::Unit;
  static constexpr int kInputs = Config::kInputs;
  static constexpr int kGroups = Config::kGroups, kHeadGroups = Config::kHeadGroups;

  const uint32_t* weights;
  TokenOperands<Config> x, dz;  // normalised input; gradient of the branch

  // The heads of one step: calls use with what they are for the gradients of weights, if those are
  // wanted; adds their part to dnormed if dx is.
  template <class Use>
  TNT_DEVICE void step(int step, bool want_dx, bool want_dw, const Use& use,
                       float (&dnormed)[kInputs][4]) const {
    StepFeatures<Config> in;
    StepGradients<Config> grad;
    const int first_word = step * Config::kStepWords;
    project(first_word, in);
#pragma unroll
    for (int head = 0; head < Config::kStepHeads; ++head) {
      attend(in, head * kHeadGroups, want_dw, grad);
    }
    if (want_dw) use(grad);
    if (want_dx) {
      WeightStream<Math> stream(weights, first_word + Config::kTransposedWord);
      add_dnormed(stream, grad.dq, dnormed);
      add_dnormed(stream, grad.dk, dnormed);
      add_dnormed(stream, grad.dv, dnormed);
    }
  }

 private:
  TNT_DEVICE void project(int first_word, StepFeatures<Config>& in) const {
    WeightStream<Math> stream(weights, first_word), biases(weights, first_word + Config::kBiasWord);
    Tile tokens[1][kInputs], gradients[1][kInputs];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      tokens[0][i] = x.rows[i];
      gradients[0][i] = dz.rows[i];
    }
    float bias[kGroups][2];
#pragma unroll
    for (int f = 0; f < 2 * kGroups; ++f) bias[f / 2][f % 2] = biases.number();
    warp_linear<Math, kGroups, false>(stream, tokens, [&](int, int f, const auto& acc) {
      float y[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) y[e] = acc.sum[e] + bias[f][e % 2];
      in.q[f] = Math::tile(y);
    });
    // a bias of k changes no probability, and that of v is left to the finishing kernel
    warp_linear<Math, kGroups, false>(
        stream, tokens, [&](int, int f, const auto& acc) { in.k[f] = Math::tile(acc.sum); });
    warp_linear<Math, kGroups, false>(
        stream, tokens, [&](int, int f, const auto& acc) { in.v[f] = Math::tile(acc.sum); });
    warp_linear<Math, kGroups, false>(
        stream, gradients, [&](int, int f, const auto& acc) { in.dout[f] = Math::tile(acc.sum); });
  }

  // One head: feature groups [first, first + kHeadGroups).
  static TNT_DEVICE void attend(const StepFeatures<Config>& in, int first, bool want_out,
                                StepGradients<Config>& grad) {
    float p[2][4] = {}, ds[2][4] = {};
    scores(in.q, in.k, first, p);
    scores(in.dout, in.v, first, ds);
    softmax(p);
    score_gradients(p, ds);
    const Tile p_tile[2] = {Math::tile(p[0]), Math::tile(p[1])};
    const Tile ds_tile[2] = {Math::tile(ds[0]), Math::tile(ds[1])};
    Tile p_keys[2], ds_keys[2];  // keys are rows
    transpose_pair(p_tile, p_keys);
    transpose_pair(ds_tile, ds_keys);
#pragma unroll
    for (int f = first; f < first + kHeadGroups; ++f) {
      float dq[4];
      if (want_out) grad.out[f] = mix(p_tile, in.v[f]);
      grad.dq[f] = mix(ds_tile, in.k[f], dq);
      grad.dk[f] = mix(ds_keys, in.q[f]);
      grad.dv[f] = mix(p_keys, in.dout[f]);
      grad.q_bias[f][0] = dq[0] + dq[2];
      grad.q_bias[f][1] = dq[1] + dq[3];
    }
  }

  // Products of all queries with all keys, or of gradients with values.
  static TNT_DEVICE void scores(const Tile (&queries)[kGroups], const Tile (&keys)[kGroups],
                                int first, float (&y)[2][4]) {
    Tile q[kHeadGroups];
#pragma unroll
    for (int f = 0; f < kHeadGroups; ++f) q[f] = queries[first + f];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Unit k[kHeadGroups];
#pragma unroll
      for (int f = 0; f < kHeadGroups; ++f) k[f] = keys[first + f].rows[half];
      multiply_add<Math>(y[half], q, k);
    }
  }

  static TNT_DEVICE void softmax(float (&p)[2][4]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float largest = p[0][2 * row];
#pragma unroll
      for (int j = 1; j < 4; ++j) largest = max_f32(largest, p[j / 2][2 * row + j % 2]);
      largest = warp_row_max(largest);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& value = p[j / 2][2 * row + j % 2];
        value = exp2_approx(value - largest);
      }
    }
    const Unit ones = Math::unit(1.0f, 1.0f);
    float sums[4] = {};  // of rows, in every column
    Math::mma(sums, Math::tile(p[0]), Math::tile(p[1]), ones, ones);
    const float factor[2] = {rcp_approx(sums[0]), rcp_approx(sums[2])};
#pragma unroll
    for (int j = 0; j < 8; ++j) p[j / 4][j % 4] *= factor[j % 4 / 2];
  }

  // ds: from dP to dS.
  static TNT_DEVICE void score_gradients(const float (&p)[2][4], float (&ds)[2][4]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int e = 2 * row + j % 2;
        sum = fma_f32(p[j / 2][e], ds[j / 2][e], sum);
      }
      sum = warp_row_sum(sum);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& value = ds[j / 2][2 * row + j % 2];
        value = p[j / 2][2 * row + j % 2] * (value - sum);
      }
    }
  }

  // The sum over all tokens in the columns of weight times a feature group of these tokens.
  static TNT_DEVICE Tile mix(const Tile (&weight)[2], const Tile& features, float (&sum)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] = 0;
    Math::mma(sum, weight[0], weight[1], warp_transpose(features.rows[0]),
              warp_transpose(features.rows[1]));
    return Math::tile(sum);
  }

  static TNT_DEVICE Tile mix(const Tile (&weight)[2], const Tile& features) {
    float sum[4];
    return mix(weight, features, sum);
  }

  // dnormed += (tokens, features) (features, channels)
  static TNT_DEVICE void add_dnormed(WeightStream<Math>& stream, const Tile (&features)[kGroups],
                                     float (&dnormed)[kInputs][4]) {
#pragma unroll
    for (int n = 0; n < kInputs; ++n) {
      Unit w[kGroups];
      stream.units(w);
      multiply_add<Math>(dnormed[n], features, w);
    }
  }
};

}  // namespace tnt_kernels::cuda
