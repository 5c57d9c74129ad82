// Gradient of y = x + MLP(LN(x)), Eq. 7: dx and, summed over all tokens, the weights' gradients.
// One warp takes 16 tokens at a time; the hidden layer is computed again, transposed (hidden units
// are rows), so that its gradient is at once the left operand of the weights' gradients.
#pragma once

#include "cuda/inner_block/backward_rows.cuh"
#include "cuda/inner_block/backward_sums.cuh"

namespace tnt_kernels::cuda {

template <class Config>
struct MlpBackwardWarp {
  using Math = typename Config::Math;
  static constexpr int kInputs = Config::kInputs;

  const uint32_t* weights;
  TokenOperands<Config> x, dz;  // normalised input; gradient of the branch

  // Hidden units [16 chunk, 16 chunk + 16): their part of the weights' gradients is added to
  // sums.*[local], their part of dnormed to dnormed.
  template <bool kWantDx, bool kWantDw>
  TNT_DEVICE void chunk(int chunk, typename Config::Values& sums, int local,
                        float (&dnormed)[kInputs][4]) const {
    WeightStream<Math> stream(weights, chunk * Config::kChunkWords);
    typename Math::Tile fc1[kInputs], fc2[kInputs], hidden[2], dhidden[2];
    read(stream, fc1, 0, Config::kEven);
    read(stream, fc2, 0, Config::kEven);
    read(stream, fc1, Config::kEven, kInputs);
    read(stream, fc2, Config::kEven, kInputs);
    WeightStream<Math> biases(weights, chunk * Config::kChunkWords + Config::kBiasWord);
    WeightStream<Math> transposed(weights, chunk * Config::kChunkWords + Config::kTransposedWord);
    float bias[4], du_sum[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) bias[i] = biases.number();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      typename Math::Unit tokens[kInputs], gradients[kInputs];
#pragma unroll
      for (int k = 0; k < kInputs; ++k) {
        tokens[k] = x.rows[k].rows[half];
        gradients[k] = dz.rows[k].rows[half];
      }
      float u[4] = {bias[0], bias[1], bias[2], bias[3]}, du[4] = {};
      multiply_add<Math>(u, fc1, tokens);
      multiply_add<Math>(du, fc2, gradients);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const FloatPair gelu = gelu_and_slope<Math>(u[i]);
        u[i] = gelu.lo;
        du[i] *= gelu.hi;
      }
      du_sum[half][0] = du[0] + du[1];
      du_sum[half][1] = du[2] + du[3];
      hidden[half] = Math::tile(u);
      dhidden[half] = Math::tile(du);
    }
    if constexpr (kWantDw) {
#pragma unroll
      for (int n = 0; n < kInputs; ++n) {
        Math::mma(sums.fc1[local][n], dhidden[0], dhidden[1], x.columns[n][0], x.columns[n][1]);
        Math::mma(sums.fc2[local][n], hidden[0], hidden[1], dz.columns[n][0], dz.columns[n][1]);
      }
      sums.fc1_bias[local][0] += du_sum[0][0] + du_sum[1][0];
      sums.fc1_bias[local][1] += du_sum[0][1] + du_sum[1][1];
    }
    if constexpr (kWantDx) {
      typename Math::Tile rows[2];  // tokens are rows
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        rows[i / 2].rows[i % 2] = warp_transpose(dhidden[i % 2].rows[i / 2]);
      }
#pragma unroll
      for (int n = 0; n < kInputs; ++n) {
        typename Math::Unit w[2];
        transposed.units(w);
        multiply_add<Math>(dnormed[n], rows, w);
      }
    }
  }

 private:
  static TNT_DEVICE void read(WeightStream<Math>& stream, typename Math::Tile (&w)[kInputs],
                              int first, int last) {
#pragma unroll
    for (int i = 2 * first; i < 2 * last; ++i) w[i / 2].rows[i % 2] = stream.unit();
  }
};

// All rows, for dx or a slice of the sums, or both where one slice is all.
template <class Config, bool kWantDx, bool kWantDw>
TNT_DEVICE void mlp_bwd_pass(const BackwardParams& params) {
  constexpr int kInputs = Config::kInputs;
  const Share<kWantDw ? Config::kSlices : 1, Config::kWarps> share(params);
  const int num_groups = static_cast<int>((params.num_rows + 15) / 16);
  MlpBackwardWarp<Config> warp;
  warp.weights = backward_weights<Config>(params.weights);
  typename Config::Values sums = {};
#pragma unroll 1
  for (int group = share.first(); group < num_groups; group += share.stride()) {
    const BackwardRows<Config> rows(group, params.num_rows);
    float dy[kInputs][4], rstd[2], dnormed[kInputs][4] = {};
    {
      float x[kInputs][4], normed[kInputs][4], branch[kInputs][4];
      rows.load(params.x, 0, x);
      rows.load(params.dy, 0, dy);
      warp_normalize<typename Config::Row, Config::kDim>(x, params.eps, normed, rstd);
      rows.scale(params.drop_path, 0, dy, branch);
      warp.x.template set<kWantDw>(normed);
      warp.dz.template set<kWantDw>(branch);
      if constexpr (kWantDw) add_columns(branch, sums.fc2_bias);
    }
    if constexpr (kWantDw) {
#pragma unroll
      for (int c = 0; c < Config::kSliceChunks; ++c) {
        warp.template chunk<kWantDx, true>(share.slice * Config::kSliceChunks + c, sums, c,
                                           dnormed);
      }
    } else {
#pragma unroll 1
      for (int c = 0; c < Config::kChunks; ++c) {
        warp.template chunk<true, false>(c, sums, 0, dnormed);
      }
    }
    if constexpr (kWantDx) {
      add_norm_gradient(warp.x, dnormed, rstd, dy);
      rows.store(params.dx, 0, dy);
    }
  }
  if constexpr (kWantDw) {
    if (!block_add_up(sums)) return;
    write_mlp_sums<Config>(sums, share.slice, share.partial(Config::kSums));
  }
}

template <class Config>
TNT_DEVICE void inner_mlp_bwd_body(const BackwardParams& params) {
  if (params.partials == nullptr) {
    mlp_bwd_pass<Config, true, false>(params);
  } else if (!Config::kOnePass || params.dx == nullptr) {
    mlp_bwd_pass<Config, false, true>(params);
  } else if constexpr (Config::kOnePass) {
    mlp_bwd_pass<Config, true, true>(params);
  }
}

}  // namespace tnt_kernels::cuda
