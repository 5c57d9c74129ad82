// From sums over all tokens to the gradients of the weights, in the order of the operators'
// schemas.
//
// Where W' = W diag(gamma) and b' = b + W beta follow a LayerNorm with affine gamma, beta:
//   dW = dW' diag(gamma) + db' beta^T,  dgamma[c] = sum_n W[n][c] dW'[n][c],  dbeta = W^T db'
// so the LayerNorms' own gradients cost nothing per token. A warp makes a number that is a sum over
// rows, a thread any other; every sum has a fixed order.
#pragma once

#include "cuda/inner_block/backward_pack.cuh"

namespace tnt_kernels::cuda {

TNT_DEVICE int64_t global_thread() {
  return static_cast<int64_t>(block_id()) * block_threads() + thread_id();
}
TNT_DEVICE int64_t global_threads() { return static_cast<int64_t>(num_blocks()) * block_threads(); }

// A linear layer behind a LayerNorm, rows [first, first + rows) of its weight, and its sums.
struct FoldedGradient {
  const WeightView& weight;
  int first, rows;
  const float *dw, *db;  // null: the bias has no gradient
  float scale;           // from the sums to gradients

  TNT_DEVICE float weight_grad(int row, int channel, int dim) const {
    return scale * load_float(dw + row * dim + channel);
  }
  TNT_DEVICE float bias_grad(int row) const {
    return db == nullptr ? 0.0f : scale * load_float(db + row);
  }
  // Of element (row, channel) of the weight itself.
  TNT_DEVICE float at(const WeightView& gamma, const WeightView& beta, int row, int channel,
                      int dim) const {
    return fma_f32(weight_grad(row, channel, dim), weight_at(gamma, channel),
                   bias_grad(row) * weight_at(beta, channel));
  }
  // This lane's part of the gradient of gamma[channel], or of beta[channel].
  TNT_DEVICE float norm_grad(int channel, int dim, bool of_gamma) const {
    float sum = 0;
    for (int row = lane_id(); row < rows; row += 32) {
      const float grad = of_gamma ? weight_grad(row, channel, dim) : bias_grad(row);
      sum = fma_f32(weight_at(weight, first + row, channel), grad, sum);
    }
    return sum;
  }
};

// Calls norm_grad(channel, of gamma or else of beta) for a lane's part of each of the norm's
// gradients, the first 2 C numbers of dw.
template <class NormGrad>
TNT_DEVICE void write_norm_gradients(float* dw, int dim, const NormGrad& norm_grad) {
  const int warps = static_cast<int>(global_threads() / 32);
  for (int i = block_id() * (block_threads() / 32) + warp_id(); i < 2 * dim; i += warps) {
    const float sum = warp_sum(norm_grad(i % dim, i < dim));
    if (lane_id() == 0) store_float(dw + i, sum);
  }
}

TNT_DEVICE void write_mlp_gradients(const FinishParams& params) {
  const PackParams& w = params.weights;
  const int dim = params.dim, hidden = kHiddenPerDim * dim;
  const int64_t matrix = static_cast<int64_t>(hidden) * dim;
  const float *fc1_sum = params.sums, *fc2_sum = fc1_sum + matrix;
  const float *fc1_bias_sum = fc2_sum + matrix, *fc2_bias_sum = fc1_bias_sum + hidden;
  const FoldedGradient fc1 = {w.fc1_weight, 0, hidden, fc1_sum, fc1_bias_sum, 1.0f};
  write_norm_gradients(params.dw, dim, [&](int channel, bool of_gamma) {
    return fc1.norm_grad(channel, dim, of_gamma);
  });
  const auto value = [&](int64_t i) {
    if (i < matrix) {
      return fc1.at(w.norm2_weight, w.norm2_bias, static_cast<int>(i / dim),
                    static_cast<int>(i % dim), dim);
    }
    i -= matrix;
    if (i < hidden) return load_float(fc1_bias_sum + i);
    i -= hidden;
    if (i < matrix) return load_float(fc2_sum + i % hidden * dim + i / hidden);
    return load_float(fc2_bias_sum + i - matrix);
  };
  float* dw = params.dw + 2 * dim;
  for (int64_t i = global_thread(); i < 2 * matrix + hidden + dim; i += global_threads()) {
    store_float(dw + i, value(i));
  }
}

// Probabilities sum to 1, so that v's folded bias b' is added to every mean of values, and all of
// the gradient of proj's input reaches it: db' = proj^T dproj_bias, and proj's gradient has a part
// dproj_bias b'^T. The kernels leave both out. Every block makes its own in shared memory.
struct ValueBias {
  float *bias, *gradient;
};

TNT_DEVICE ValueBias block_value_bias(const FinishParams& params) {
  const PackParams& w = params.weights;
  const int dim = params.dim;
  float* bias_smem = reinterpret_cast<float*>(dynamic_shared());
  const ValueBias y = {bias_smem, bias_smem + dim};
  const float* proj_bias_sum = params.sums + (params.num_sums - dim);
  for (int row = warp_id(); row < dim; row += block_threads() / 32) {
    float gradient = 0, bias = 0;
    for (int c = lane_id(); c < dim; c += 32) {
      gradient = fma_f32(weight_at(w.proj_weight, c, row), load_float(proj_bias_sum + c), gradient);
      bias = fma_f32(weight_at(w.v_weight, row, c), weight_at(w.norm1_bias, c), bias);
    }
    gradient = warp_sum(gradient);
    bias = warp_sum(bias);
    if (lane_id() == 0) {
      store_float(y.gradient + row, gradient);
      store_float(y.bias + row, w.v_bias.data == nullptr ? bias : bias + weight_at(w.v_bias, row));
    }
  }
  block_sync();
  return y;
}

TNT_DEVICE void write_attention_gradients(const FinishParams& params) {
  const ValueBias v_bias = block_value_bias(params);
  const PackParams& w = params.weights;
  const int dim = params.dim;
  const int64_t matrix = static_cast<int64_t>(dim) * dim;
  const float *q_sum = params.sums, *k_sum = q_sum + matrix, *v_sum = k_sum + matrix;
  const float *proj_sum = v_sum + matrix, *q_bias_sum = proj_sum + matrix;
  const float* proj_bias_sum = q_bias_sum + dim;
  const FoldedGradient q = {w.qk_weight, 0,          dim,
                            q_sum,       q_bias_sum, query_grad_scale(dim / params.num_heads)};
  const FoldedGradient k = {w.qk_weight, dim, dim, k_sum, nullptr, kKeyGradScale};
  const FoldedGradient v = {w.v_weight, 0, dim, v_sum, v_bias.gradient, 1.0f};
  write_norm_gradients(params.dw, dim, [&](int channel, bool of_gamma) {
    return q.norm_grad(channel, dim, of_gamma) + k.norm_grad(channel, dim, of_gamma) +
           v.norm_grad(channel, dim, of_gamma);
  });
  const auto value = [&](int64_t i) {
    const int row = static_cast<int>(i / dim), channel = static_cast<int>(i % dim);
    if (i < matrix) return q.at(w.norm1_weight, w.norm1_bias, row, channel, dim);
    if (i < 2 * matrix) return k.at(w.norm1_weight, w.norm1_bias, row - dim, channel, dim);
    i -= 2 * matrix;
    if (i < 2 * dim) return i < dim ? q.bias_grad(static_cast<int>(i)) : 0.0f;
    i -= 2 * dim;
    if (i < matrix) {
      return v.at(w.norm1_weight, w.norm1_bias, static_cast<int>(i / dim),
                  static_cast<int>(i % dim), dim);
    }
    i -= matrix;
    if (i < dim) return load_float(v_bias.gradient + i);
    i -= dim;
    if (i < matrix) {
      return fma_f32(load_float(proj_bias_sum + i / dim), load_float(v_bias.bias + i % dim),
                     load_float(proj_sum + i % dim * dim + i / dim));
    }
    return load_float(proj_bias_sum + i - matrix);
  };
  float* dw = params.dw + 2 * dim;
  for (int64_t i = global_thread(); i < 4 * matrix + 4 * dim; i += global_threads()) {
    store_float(dw + i, value(i));
  }
}

// dw, from the sums; 2 `dim` floats of shared memory.
TNT_DEVICE void inner_bwd_finish_body(const FinishParams& params) {
  if (params.weights.has_mlp) {
    write_mlp_gradients(params);
  } else {
    write_attention_gradients(params);
  }
}

}  // namespace tnt_kernels::cuda
