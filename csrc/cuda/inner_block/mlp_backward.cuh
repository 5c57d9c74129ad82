// Gradient of y = x + MLP(LN(x)), Eq. 7: dx and, summed over all tokens, the weights' gradients.
// One warp takes 16 tokens at a time; the hidden layer is computed again, transposed (hidden units
// are rows), so that its gradient is at once the left operand of the weights' gradients.
#pragma once

#include "cuda/inner_block/backward_rows.cuh"

namespace tnt_kernels::cuda {

// 16 hidden units of 16 tokens, and the gradient before GELU. Hidden units are rows, tokens columns
// of two tiles.
template <class Math>
struct HiddenChunk {
  typename Math::Tile hidden[2], gradient[2];
  float sum[2][2];  // of the gradient, over this lane's tokens of a tile, of rows g and g + 8
};

template <class Config>
struct MlpBackwardWarp {
  using Math = typename Config::Math;
  static constexpr int kInputs = Config::kInputs;

  const uint32_t* weights;
  TokenOperands<Config> x, dz;  // normalised input; gradient of the branch

  // Hidden units [16 chunk, 16 chunk + 16): calls use with what they are for the gradients of
  // weights; adds their part to dnormed if dx is wanted.
  template <class Use>
  TNT_DEVICE void chunk(int chunk, bool want_dx, const Use& use,
                        float (&dnormed)[kInputs][4]) const {
    WeightStream<Math> stream(weights, chunk * Config::kChunkWords);
    typename Math::Tile fc1[kInputs], fc2[kInputs];
    HiddenChunk<Math> y;
    read(stream, fc1, 0, Config::kEven);
    read(stream, fc2, 0, Config::kEven);
    read(stream, fc1, Config::kEven, kInputs);
    read(stream, fc2, Config::kEven, kInputs);
    WeightStream<Math> biases(weights, chunk * Config::kChunkWords + Config::kBiasWord);
    WeightStream<Math> transposed(weights, chunk * Config::kChunkWords + Config::kTransposedWord);
    float bias[4];
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
      y.sum[half][0] = du[0] + du[1];
      y.sum[half][1] = du[2] + du[3];
      y.hidden[half] = Math::tile(u);
      y.gradient[half] = Math::tile(du);
    }
    use(y);
    if (want_dx) {
      typename Math::Tile rows[2];  // tokens are rows
      transpose_pair(y.gradient, rows);
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

}  // namespace tnt_kernels::cuda
