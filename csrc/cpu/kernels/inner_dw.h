// Sums the slices' weight gradients and turns those of folded weights into those of the weights.
//
// Where W' = W diag(gamma) and b' = b + W beta follow a LayerNorm with affine gamma, beta:
//   dW = dW' diag(gamma) + db' beta^T     dgamma[c] = sum_n W[n][c] dW'[n][c]     dbeta = W^T db'
// so the LayerNorms' own gradients cost nothing per token.
#pragma once

#include "cpu/kernels/inner_bwd.h"

namespace tnt_kernels::cpu::TNT_ISA {

// The slices' partials, each `step` floats after the one before; summed in that order.
struct PartialSum {
  const float* first;
  int64_t step, count;
  TokenMajor shape;

  double at(int64_t offset) const {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) sum += first[i * step + offset];
    return sum;
  }
  // Element (n, c) of the (rows, C) matrix at `matrix`, an address in the first partial.
  double matrix(const float* matrix, int64_t n, int c) const {
    const int64_t offset = matrix - first + n * shape.stride + c * shape.tokens;
    return shape.tokens == 2 ? at(offset) + at(offset + 1) : at(offset);
  }
  double bias(const float* bias, int64_t n) const {
    double sum = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) sum += at(bias - first + n * kLanes + lane);
    return sum;
  }
};

// Row n of a linear layer behind a LayerNorm. dgamma and dbeta, of width dim, are added to.
TNT_INLINE void unfold_row(const PartialSum& sum, const float* dw_rows, int64_t n, double db,
                           float scale, const float* w_row, const float* gamma, const float* beta,
                           int dim, float* dw_row, double* dgamma_dbeta) {
  for (int c = 0; c < dim; ++c) {
    const double d = sum.matrix(dw_rows, n, c) * scale;
    dw_row[c] = static_cast<float>(d * gamma[c] + db * beta[c]);
    dgamma_dbeta[c] += w_row[c] * d;
    dgamma_dbeta[dim + c] += w_row[c] * db;
  }
}

// Writes the sums of unfold_row as the gradients of gamma and beta.
TNT_INLINE void write_norm_grad(const double* dgamma_dbeta, int dim, float* dw) {
  for (int c = 0; c < 2 * dim; ++c) dw[c] = static_cast<float>(dgamma_dbeta[c]);
}

inline float* attention_finish_dw(const InnerCall& call, const PartialSum& sum,
                                  const InnerPartial& p, double* norm, float* dw) {
  const InnerWeights& w = call.weights;
  const int dim = call.dim;
  float* dnorm = dw;
  float* dqk = dnorm + 2 * dim;
  float* dqk_bias = dqk + int64_t{2} * dim * dim;
  float* dv = dqk_bias + 2 * dim;
  float* dv_bias = dv + int64_t{dim} * dim;
  float* dproj = dv_bias + dim;
  float* dproj_bias = dproj + int64_t{dim} * dim;
  for (int c = 0; c < 2 * dim; ++c) norm[c] = 0.0;
  for (int n = 0; n < 3 * dim; ++n) {
    const bool is_v = n >= 2 * dim;
    const int row = is_v ? n - 2 * dim : n;
    const float scale = qkv_grad_scale(call, n);
    const double db = sum.bias(p.qkv_bias, n) * scale;
    (is_v ? dv_bias : dqk_bias)[row] = static_cast<float>(db);
    unfold_row(sum, p.qkv, n, db, scale, qkv_row(call, n), w.norm1_weight, w.norm1_bias, dim,
               (is_v ? dv : dqk) + int64_t{row} * dim, norm);
  }
  write_norm_grad(norm, dim, dnorm);
  for (int n = 0; n < dim; ++n) {
    for (int i = 0; i < dim; ++i) {
      dproj[int64_t{n} * dim + i] = static_cast<float>(sum.matrix(p.proj_t, i, n));
    }
    dproj_bias[n] = static_cast<float>(sum.bias(p.proj_bias, n));
  }
  return dproj_bias + dim;
}

inline void mlp_finish_dw(const InnerCall& call, const PartialSum& sum, const InnerPartial& p,
                          double* norm, float* dw) {
  const InnerWeights& w = call.weights;
  const int dim = call.dim, hidden = call.hidden_dim;
  float* dnorm = dw;
  float* dfc1 = dnorm + 2 * dim;
  float* dfc1_bias = dfc1 + int64_t{hidden} * dim;
  float* dfc2 = dfc1_bias + hidden;
  float* dfc2_bias = dfc2 + int64_t{dim} * hidden;
  for (int c = 0; c < 2 * dim; ++c) norm[c] = 0.0;
  for (int n = 0; n < hidden; ++n) {
    const double db = sum.bias(p.fc1_bias, n);
    dfc1_bias[n] = static_cast<float>(db);
    unfold_row(sum, p.fc1, n, db, 1.0f, w.fc1_weight + int64_t{n} * dim, w.norm2_weight,
               w.norm2_bias, dim, dfc1 + int64_t{n} * dim, norm);
    for (int c = 0; c < dim; ++c) {
      dfc2[int64_t{c} * hidden + n] = static_cast<float>(sum.matrix(p.fc2_t, n, c));
    }
  }
  write_norm_grad(norm, dim, dnorm);
  for (int c = 0; c < dim; ++c) dfc2_bias[c] = static_cast<float>(sum.bias(p.fc2_bias, c));
}

// norm: 2 * dim doubles of scratch.
inline void inner_finish_dw(const InnerCall& call, float* partials, int64_t num_partials,
                            double* norm, float* dw) {
  const InnerPartial p = inner_partial(call, partials);
  const PartialSum sum = {partials, p.floats, num_partials, p.shape};
  if (call.has_attention) dw = attention_finish_dw(call, sum, p, norm, dw);
  if (call.has_mlp) mlp_finish_dw(call, sum, p, norm, dw);
}

}  // namespace tnt_kernels::cpu::TNT_ISA
