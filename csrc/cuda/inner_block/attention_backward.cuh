// Gradient of y = x + MSA(LN(x)), Eq. 6: dx and, summed over all tokens, the weights' gradients.
// One warp takes whole sequences, a step of heads at a time, in registers.
//
// With P the probabilities and dO the gradient of a head's output, dP = dO V^T and
//   dS = P (dP - rowsum(P dP)),   dQ = dS K,   dK = dS^T Q,   dV = P^T dO.
// Scores are in units of log2(e) with the softmax's scale inside Q; the packed weights and the
// finishing kernel make up for both (see query_grad_scale).
#pragma once

#include "cuda/inner_block/backward_rows.cuh"
#include "cuda/inner_block/backward_sums.cuh"
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

// Those of two feature groups: of q, k, v and of the output.
template <class Config>
struct PairGradients {
  typename Config::Math::Tile features[Config::kMatrices][2];
  float q_bias[2][2];

  TNT_DEVICE void clear(int group) {
#pragma unroll
    for (int m = 0; m < Config::kMatrices; ++m) features[m][group] = {};
    q_bias[group][0] = q_bias[group][1] = 0.0f;
  }
};

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

  // The heads of one step: their part of the weights' gradients is added to sums.*[local], of all
  // pairs of groups, or of `slice_pair` where a slice is one; their part of dnormed to dnormed.
  template <bool kWantDx, bool kWantDw>
  TNT_DEVICE void step(int step, typename Config::Values& sums, int local, int slice_pair,
                       float (&dnormed)[kTiles][kInputs][4]) const {
    StepFeatures<Config> in[kTiles];
    StepGradients<Config> grad[kTiles];
    const int first_word = step * Config::kStepWords;
    project(first_word, in);
#pragma unroll
    for (int head = 0; head < Config::kStepHeads; ++head) {
      attend<kWantDw>(in, head * kHeadGroups, grad);
    }
    if constexpr (kWantDw && Config::kOnePass) {
#pragma unroll
      for (int pair = 0; pair < Config::kPairs; ++pair) {
        PairGradients<Config> chosen[kTiles];
        choose(grad, pair, chosen);
        add_sums(chosen, sums, local, pair);
      }
    } else if constexpr (kWantDw) {
      PairGradients<Config> chosen[kTiles] = {};
#pragma unroll
      for (int pair = 0; pair < Config::kPairs; ++pair) {
        if (pair == slice_pair) choose(grad, pair, chosen);
      }
      add_sums(chosen, sums, local, 0);
    }
    if constexpr (kWantDx) {
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
    warp_linear<Math, kGroups, false>(stream, tokens, [&](int i, int f, const auto& acc) {
      float y[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) y[e] = acc.sum[e] + bias[f][e % 2];
      in[i].q[f] = Math::tile(y);
    });
    // a bias of k changes no probability, and that of v is left to the finishing kernel
    warp_linear<Math, kGroups, false>(
        stream, tokens, [&](int i, int f, const auto& acc) { in[i].k[f] = Math::tile(acc.sum); });
    warp_linear<Math, kGroups, false>(
        stream, tokens, [&](int i, int f, const auto& acc) { in[i].v[f] = Math::tile(acc.sum); });
    warp_linear<Math, kGroups, false>(stream, gradients, [&](int i, int f, const auto& acc) {
      in[i].dout[f] = Math::tile(acc.sum);
    });
  }

  // What is not a number in one sequence of a tile must not reach the others, whose probabilities
  // of it are 0. Its own probabilities, or dS, are NaN then.
  static TNT_DEVICE Unit operand(const Unit& a) {
    if constexpr (kManySequences) return Math::finite(a);
    return a;
  }

  // One head: feature groups [first, first + kHeadGroups).
  template <bool kWantOut>
  static TNT_DEVICE void attend(const StepFeatures<Config> (&in)[kTiles], int first,
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
        if constexpr (kWantOut) {
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
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p_keys[e / 2].rows[e % 2] = warp_transpose(p_tile[j][e % 2].rows[e / 2]);
          ds_keys[e / 2].rows[e % 2] = warp_transpose(ds_tile[j][e % 2].rows[e / 2]);
        }
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

  // Feature groups 2 pair and 2 pair + 1 of a step.
  static TNT_DEVICE void choose(const StepGradients<Config> (&grad)[kTiles], int pair,
                                PairGradients<Config> (&chosen)[kTiles]) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int f = 2 * pair + e;
        if (f >= kGroups) {  // the pad of an odd number of groups
          chosen[i].clear(e);
          continue;
        }
        chosen[i].features[0][e] = grad[i].dq[f];
        chosen[i].features[1][e] = grad[i].dk[f];
        chosen[i].features[2][e] = grad[i].dv[f];
        chosen[i].features[3][e] = grad[i].out[f];
        chosen[i].q_bias[e][0] = grad[i].q_bias[f][0];
        chosen[i].q_bias[e][1] = grad[i].q_bias[f][1];
      }
    }
  }

  TNT_DEVICE void add_sums(const PairGradients<Config> (&grad)[kTiles],
                           typename Config::Values& sums, int local, int local_pair) const {
    float (&matrix)[Config::kMatrices][kInputs][4] = sums.matrix[local][local_pair];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      Tile features[Config::kMatrices][2];  // features are rows
#pragma unroll
      for (int m = 0; m < Config::kMatrices; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          features[m][e / 2].rows[e % 2] = warp_transpose(grad[i].features[m][e % 2].rows[e / 2]);
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums.q_bias[local][local_pair][e / 2][e % 2] += grad[i].q_bias[e / 2][e % 2];
      }
#pragma unroll Config::kUnrollInputs
      for (int n = 0; n < kInputs; ++n) {
#pragma unroll
        for (int m = 0; m < Config::kMatrices; ++m) {
          const Unit(&tokens)[2] = m == 3 ? dz[i].columns[n] : x[i].columns[n];
          Math::mma(matrix[m][n], features[m][0], features[m][1], tokens[0], tokens[1]);
        }
      }
    }
  }
};

// All rows, for dx or a slice of the sums, or both where one slice is all.
template <class Config, bool kWantDx, bool kWantDw>
TNT_DEVICE void attention_bwd_pass(const BackwardParams& params) {
  constexpr int kInputs = Config::kInputs, kTiles = Config::kTiles;
  const Share<kWantDw ? Config::kSlices : 1, Config::kWarps> share(params);
  constexpr int kRows = BackwardRows<Config>::kRows;
  const int num_groups = static_cast<int>((params.num_rows + kRows - 1) / kRows);
  AttentionBackwardWarp<Config> warp;
  warp.weights = backward_weights<Config>(params.weights);
  typename Config::Values sums = {};
#pragma unroll 1
  for (int group = share.first(); group < num_groups; group += share.stride()) {
    const BackwardRows<Config> rows(group, params.num_rows);
    float dy[kTiles][kInputs][4], rstd[kTiles][2];
    float dnormed[kTiles][kInputs][4] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float x[kInputs][4], normed[kInputs][4], branch[kInputs][4];
      rows.load(params.x, i, x);
      rows.load(params.dy, i, dy[i]);
      warp_normalize<typename Config::Row, Config::kDim>(x, params.eps, normed, rstd[i]);
      rows.scale(params.drop_path, i, dy[i], branch);
      warp.x[i].template set<kWantDw>(normed);
      warp.dz[i].template set<kWantDw>(branch);
      if constexpr (kWantDw) add_columns(branch, sums.proj_bias);
    }
    if constexpr (!kWantDw) {
#pragma unroll 1
      for (int step = 0; step < Config::kSteps; ++step) {
        warp.template step<true, false>(step, sums, 0, 0, dnormed);
      }
    } else if constexpr (Config::kOnePass) {
#pragma unroll
      for (int step = 0; step < Config::kSteps; ++step) {
        warp.template step<kWantDx, true>(step, sums, step, 0, dnormed);
      }
    } else {
      warp.template step<false, true>(share.slice / Config::kPairs, sums, 0,
                                      share.slice % Config::kPairs, dnormed);
    }
    if constexpr (kWantDx) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        add_norm_gradient(warp.x[i], dnormed[i], rstd[i], dy[i]);
        rows.store(params.dx, i, dy[i]);
      }
    }
  }
  if constexpr (kWantDw) {
    if (!block_add_up(sums)) return;
    write_attention_sums<Config>(sums, share.slice, share.partial(Config::kSums));
  }
}

template <class Config>
TNT_DEVICE void inner_attention_bwd_body(const BackwardParams& params) {
  if (params.partials == nullptr) {
    attention_bwd_pass<Config, true, false>(params);
  } else if (!Config::kOnePass || params.dx == nullptr) {
    attention_bwd_pass<Config, false, true>(params);
  } else if constexpr (Config::kOnePass) {
    attention_bwd_pass<Config, true, true>(params);
  }
}

}  // namespace tnt_kernels::cuda
