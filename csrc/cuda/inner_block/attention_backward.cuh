// Gradient of y = x + MSA(LN(x)), Eq. 6: dx and, summed over all tokens, the weights' gradients.
// One warp takes whole sequences, a step of heads at a time, in registers.
//
// With P the probabilities and dO the gradient of a head's output, dP = dO V^T and
//   dS = P (dP - rowsum(P dP)),   dQ = dS K,   dK = dS^T Q,   dV = P^T dO.
// Scores are in units of log2(e) with the softmax's scale inside Q; the packed weights and the
// finishing kernel make up for both (see query_grad_scale).
#pragma once

#include "cuda/inner_block/backward_rows.cuh"
#include "cuda/tile/attention.cuh"

namespace tnt_kernels::cuda {

// A step's features of one tile of tokens; tokens are rows.
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
  static constexpr int kTiles = Config::kTiles, kInputs = Config::kInputs;
  static constexpr int kGroups = Config::kGroups, kHeadGroups = Config::kHeadGroups;
  static constexpr bool kManySequences = Config::kTokens < 16;

  const uint32_t* weights;
  TokenOperands<Config> x[kTiles], dz[kTiles];  // normalised input; gradient of the branch

  // The heads of one step: calls use with what they are for the gradients of weights, if those are
  // wanted; adds their part to dnormed if dx is.
  template <class Use>
  TNT_DEVICE void step(int step, bool want_dx, bool want_dw, const Use& use,
                       float (&dnormed)[kTiles][kInputs][4]) const {
    StepFeatures<Config> in[kTiles];
    StepGradients<Config> grad[kTiles];
    const int first_word = step * Config::kStepWords;
    project(first_word, in);
#pragma unroll
    for (int head = 0; head < Config::kStepHeads; ++head) {
      attend(in, head * kHeadGroups, want_dw, grad);
    }
    if (want_dw) use(grad);
    if (want_dx) {
      WeightStream<Math> stream(weights, first_word + Config::kTransposedWord);
      add_dnormed(stream, [&](int i, int f) { return grad[i].dq[f]; }, dnormed);
      add_dnormed(stream, [&](int i, int f) { return grad[i].dk[f]; }, dnormed);
      add_dnormed(stream, [&](int i, int f) { return grad[i].dv[f]; }, dnormed);
    }
  }

 private:
  TNT_DEVICE void project(int first_word, StepFeatures<Config> (&in)[kTiles]) const {
    WeightStream<Math> stream(weights, first_word), biases(weights, first_word + Config::kBiasWord);
    Tile tokens[kTiles][kInputs], gradients[kTiles][kInputs];
#pragma unroll
    for (int i = 0; i < kTiles * kInputs; ++i) {
      tokens[i / kInputs][i % kInputs] = x[i / kInputs].rows[i % kInputs];
      gradients[i / kInputs][i % kInputs] = dz[i / kInputs].rows[i % kInputs];
    }
    float bias[kGroups][2];
#pragma unroll
    for (int f = 0; f < 2 * kGroups; ++f) bias[f / 2][f % 2] = biases.number();
    warp_linear<Math, kGroups, false, Config::kUnrollGroups>(stream, tokens,
                                                             [&](int i, int f, const auto& acc) {
                                                               float y[4];
#pragma unroll
                                                               for (int e = 0; e < 4; ++e)
                                                                 y[e] = acc.sum[e] + bias[f][e % 2];
                                                               in[i].q[f] = Math::tile(y);
                                                             });
    // a bias of k changes no probability, and that of v is left to the finishing kernel
    warp_linear<Math, kGroups, false, Config::kUnrollGroups>(
        stream, tokens, [&](int i, int f, const auto& acc) { in[i].k[f] = Math::tile(acc.sum); });
    warp_linear<Math, kGroups, false, Config::kUnrollGroups>(
        stream, tokens, [&](int i, int f, const auto& acc) { in[i].v[f] = Math::tile(acc.sum); });
    warp_linear<Math, kGroups, false, Config::kUnrollGroups>(
        stream, gradients,
        [&](int i, int f, const auto& acc) { in[i].dout[f] = Math::tile(acc.sum); });
  }

  // What is not a number in one sequence of a tile must not reach the others, whose probabilities
  // of it are 0. Its own probabilities, or dS, are NaN then.
  static TNT_DEVICE Unit operand(const Unit& a) {
    if constexpr (kManySequences) return Math::finite(a);
    return a;
  }

  // One head: feature groups [first, first + kHeadGroups).
  static TNT_DEVICE void attend(const StepFeatures<Config> (&in)[kTiles], int first, bool want_out,
                                StepGradients<Config> (&grad)[kTiles]) {
    float dk[kTiles][kHeadGroups][4] = {}, dv[kTiles][kHeadGroups][4] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};
      scores(in[i].q, first, [&](int j, int f) { return in[j].k[f]; }, p);
      scores(in[i].dout, first, [&](int j, int f) { return in[j].v[f]; }, ds);
      softmax(p);
      score_gradients(p, ds);
      Tile p_tile[kTiles][2], ds_tile[kTiles][2];
#pragma unroll
      for (int j = 0; j < 2 * kTiles; ++j) {
        p_tile[j / 2][j % 2] = Math::tile(p[j / 2][j % 2]);
        ds_tile[j / 2][j % 2] = Math::tile(ds[j / 2][j % 2]);
      }
      Unit q[kHeadGroups][2], dout[kHeadGroups][2];  // features are rows
#pragma unroll
      for (int h = 0; h < kHeadGroups; ++h) {
        const int f = first + h;
        if (want_out) {
          float out[4] = {};
          mix(p_tile, [&](int j) { return in[j].v[f]; }, out);
          grad[i].out[f] = Math::tile(out);
        }
        float dq[4] = {};
        mix(ds_tile, [&](int j) { return in[j].k[f]; }, dq);
        grad[i].dq[f] = Math::tile(dq);
        grad[i].q_bias[f][0] = dq[0] + dq[2];
        grad[i].q_bias[f][1] = dq[1] + dq[3];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          q[h][half] = operand(warp_transpose(in[i].q[f].rows[half]));
          dout[h][half] = operand(warp_transpose(in[i].dout[f].rows[half]));
        }
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        Tile p_keys[2], ds_keys[2];  // keys are rows
        transpose_pair(p_tile[j], p_keys);
        transpose_pair(ds_tile[j], ds_keys);
#pragma unroll
        for (int h = 0; h < kHeadGroups; ++h) {
          Math::mma(dv[j][h], p_keys[0], p_keys[1], dout[h][0], dout[h][1]);
          Math::mma(dk[j][h], ds_keys[0], ds_keys[1], q[h][0], q[h][1]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int h = 0; h < kHeadGroups; ++h) {
        grad[j].dk[first + h] = Math::tile(dk[j][h]);
        grad[j].dv[first + h] = Math::tile(dv[j][h]);
      }
    }
  }

  // Products of a tile's queries with all keys, or of gradients with values.
  template <class Keys>
  static TNT_DEVICE void scores(const Tile (&queries)[kGroups], int first, const Keys& keys,
                                float (&y)[kTiles][2][4]) {
    Tile q[kHeadGroups];
#pragma unroll
    for (int f = 0; f < kHeadGroups; ++f) q[f] = queries[first + f];
#pragma unroll
    for (int j = 0; j < 2 * kTiles; ++j) {
      Unit k[kHeadGroups];
#pragma unroll
      for (int f = 0; f < kHeadGroups; ++f) k[f] = keys(j / 2, first + f).rows[j % 2];
      multiply_add<Math>(y[j / 2][j % 2], q, k);
    }
  }

  static TNT_DEVICE void softmax(float (&p)[kTiles][2][4]) {
    if constexpr (kManySequences) mask_other_sequences<Config::kTokens>(p[0]);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float largest = p[0][0][2 * row];
#pragma unroll
      for (int j = 1; j < 4 * kTiles; ++j) {
        largest = max_f32(largest, p[j / 4][j / 2 % 2][2 * row + j % 2]);
      }
      largest = warp_row_max(largest);
#pragma unroll
      for (int j = 0; j < 4 * kTiles; ++j) {
        float& value = p[j / 4][j / 2 % 2][2 * row + j % 2];
        value = exp2_approx(value - largest);
      }
    }
    const Unit ones = Math::unit(1.0f, 1.0f);
    float sums[4] = {};  // of rows, in every column
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      Math::mma(sums, Math::tile(p[j][0]), Math::tile(p[j][1]), ones, ones);
    }
    const float factor[2] = {rcp_approx(sums[0]), rcp_approx(sums[2])};
#pragma unroll
    for (int j = 0; j < 8 * kTiles; ++j) p[j / 8][j / 4 % 2][j % 4] *= factor[j % 4 / 2];
    clear_other_sequences(p);
  }

  // 0 between sequences that share a tile, also where a row is NaN.
  static TNT_DEVICE void clear_other_sequences(float (&y)[kTiles][2][4]) {
    if constexpr (kManySequences) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (!same_sequence<Config::kTokens>(j / 4, j % 4)) y[0][j / 4][j % 4] = 0.0f;
      }
    }
  }

  // ds: from dP to dS.
  static TNT_DEVICE void score_gradients(const float (&p)[kTiles][2][4],
                                         float (&ds)[kTiles][2][4]) {
    clear_other_sequences(ds);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4 * kTiles; ++j) {
        const int e = 2 * row + j % 2;
        sum = fma_f32(p[j / 4][j / 2 % 2][e], ds[j / 4][j / 2 % 2][e], sum);
      }
      sum = warp_row_sum(sum);
#pragma unroll
      for (int j = 0; j < 4 * kTiles; ++j) {
        float& value = ds[j / 4][j / 2 % 2][2 * row + j % 2];
        value = p[j / 4][j / 2 % 2][2 * row + j % 2] * (value - sum);
      }
    }
    clear_other_sequences(ds);
  }

  // Adds the sum over all keys of weight (queries, keys) times a feature group of the keys.
  template <class Keys>
  static TNT_DEVICE void mix(const Tile (&weight)[kTiles][2], const Keys& keys, float (&acc)[4]) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const Tile features = keys(j);
      Math::mma(acc, weight[j][0], weight[j][1], operand(warp_transpose(features.rows[0])),
                operand(warp_transpose(features.rows[1])));
    }
  }

  // dnormed += (tokens, features) (features, channels)
  template <class Features>
  static TNT_DEVICE void add_dnormed(WeightStream<Math>& stream, const Features& features,
                                     float (&dnormed)[kTiles][kInputs][4]) {
#pragma unroll Config::kUnrollInputs
    for (int n = 0; n < kInputs; ++n) {
      Unit w[kGroups];
      stream.units(w);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        Tile a[kGroups];
#pragma unroll
        for (int f = 0; f < kGroups; ++f) a[f] = features(i, f);
        multiply_add<Math>(dnormed[i][n], a, w);
      }
    }
  }
};

}  // namespace tnt_kernels::cuda
