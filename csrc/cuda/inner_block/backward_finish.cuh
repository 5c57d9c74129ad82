// From sums over all tokens to the gradients of the weights, in the order of the operators'
// schemas.
//
// Where W' = W diag(gamma) and b' = b + W beta follow a LayerNorm with affine gamma, beta:
//   dW = dW' diag(gamma) + db' beta^T,  dgamma[c] = sum_n W[n][c] dW'[n][c],  dbeta = W^T db'
// so the LayerNorms' own gradients cost nothing per token. One thread makes one number; every sum
// has a fixed order.
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
  // Adds to the gradients of gamma[channel] and beta[channel].
  TNT_DEVICE void add_norm_grad(int channel, int dim, float& dgamma, float& dbeta) const {
    for (int row = 0; row < rows; ++row) {
      const float w = weight_at(weight, first + row, channel);
      dgamma = fma_f32(w, weight_grad(row, channel, dim), dgamma);
      dbeta = fma_f32(w, bias_grad(row), dbeta);
    }
  }
};

TNT_DEVICE float mlp_gradient(const FinishParams& params, int64_t i) {
  const PackParams& w = params.weights;
  const int dim = params.dim, hidden = kHiddenPerDim * dim;
  const int64_t matrix = static_cast<int64_t>(hidden) * dim;
  const float *fc1_sum = params.sums, *fc2_sum = fc1_sum + matrix;
  const float *fc1_bias_sum = fc2_sum + matrix, *fc2_bias_sum = fc1_bias_sum + hidden;
  const FoldedGradient fc1 = {w.fc1_weight, 0, hidden, fc1_sum, fc1_bias_sum, 1.0f};
  if (i < 2 * dim) {
    float dgamma = 0, dbeta = 0;
    fc1.add_norm_grad(static_cast<int>(i) % dim, dim, dgamma, dbeta);
    return i < dim ? dgamma : dbeta;
  }
  i -= 2 * dim;
  if (i < matrix) {
    return fc1.at(w.norm2_weight, w.norm2_bias, static_cast<int>(i / dim),
                  static_cast<int>(i % dim), dim);
  }
  i -= matrix;
  if (i < hidden) return load_float(fc1_bias_sum + i);
  i -= hidden;
  if (i < matrix) return load_float(fc2_sum + i % hidden * dim + i / hidden);
  return load_float(fc2_bias_sum + i - matrix);
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
  const NormedLinear v = {w.norm1_weight, w.norm1_bias, w.v_weight, w.v_bias, 1.0f};
  for (int row = thread_id(); row < dim; row += block_threads()) {
    float sum = 0;
    for (int c = 0; c < dim; ++c) {
      sum = fma_f32(weight_at(w.proj_weight, c, row), load_float(proj_bias_sum + c), sum);
    }
    store_float(y.gradient + row, sum);
    store_float(y.bias + row, v.bias_at(row, dim));
  }
  block_sync();
  return y;
}

TNT_DEVICE float attention_gradient(const FinishParams& params, const ValueBias& v_bias,
                                    int64_t i) {
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
  if (i < 2 * dim) {
    const int channel = static_cast<int>(i) % dim;
    float dgamma = 0, dbeta = 0;
    q.add_norm_grad(channel, dim, dgamma, dbeta);
    k.add_norm_grad(channel, dim, dgamma, dbeta);
    v.add_norm_grad(channel, dim, dgamma, dbeta);
    return i < dim ? dgamma : dbeta;
  }
  i -= 2 * dim;
  const int row = static_cast<int>(i / dim), channel = static_cast<int>(i % dim);
  if (i < matrix) return q.at(w.norm1_weight, w.norm1_bias, row, channel, dim);
  if (i < 2 * matrix) return k.at(w.norm1_weight, w.norm1_bias, row - dim, channel, dim);
  i -= 2 * matrix;
  if (i < 2 * dim) return i < dim ? q.bias_grad(static_cast<int>(i)) : 0.0f;
  i -= 2 * dim;
  if (i < matrix) {
    return v.at(w.norm1_weight, w.norm1_bias, static_cast<int>(i / dim), static_cast<int>(i % dim),
                dim);
  }
  i -= matrix;
  if (i < dim) return load_float(v_bias.gradient + i);
  i -= dim;
  if (i < matrix) {
    return fma_f32(load_float(proj_bias_sum + i / dim), load_float(v_bias.bias + i % dim),
                   load_float(proj_sum + i % dim * dim + i / dim));
  }
  return load_float(proj_bias_sum + i - matrix);
}

constexpr int64_t mlp_gradients(int64_t dim) {
  return 2 * dim + 2 * kHiddenPerDim * dim * dim + kHiddenPerDim * dim + dim;
}
constexpr int64_t attention_gradients(int64_t dim) { return 2 * dim + 4 * dim * dim + 4 * dim; }

// dw, from the sums; 2 `dim` floats of shared memory.
TNT_DEVICE void inner_bwd_finish_body(const FinishParams& params) {
  if (params.weights.has_mlp) {
    for (int64_t i = global_thread(); i < mlp_gradients(params.dim); i += global_threads()) {
      store_float(params.dw + i, mlp_gradient(params, i));
    }
    return;
  }
  const ValueBias v_bias = block_value_bias(params);
  for (int64_t i = global_thread(); i < attention_gradients(params.dim); i += global_threads()) {
    store_float(params.dw + i, attention_gradient(params, v_bias, i));
  }
}

}  // namespace tnt_kernels::cuda
