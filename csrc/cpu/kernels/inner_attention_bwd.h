// Gradient of the attention among the S tokens of each patch; see inner_attention.h for layouts.
//
// With P the probabilities and dP = dout v^T:  dS = P (dP - sum_key P dP),
//   dq = dS k      dk = dS^T q      dv = P^T dout
// dS is the gradient of the scores in natural units, while q carries the softmax's scale in powers
// of two: the weights that follow make up for both (see inner_bwd.h).
#pragma once

#include "cpu/kernels/inner_attention.h"

namespace tnt_kernels::cpu::TNT_ISA {

// Transposes an (S, S) matrix in place, S a multiple of kLanes.
template <int S>
TNT_INLINE void transpose_square(float* m) {
  for (int i = 0; i < S; i += kLanes) {
    for (int j = i; j < S; j += kLanes) {
      float *upper_ptr = m + i * S + j, *lower_ptr = m + j * S + i;
      Vec upper[kLanes], lower[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) upper[r] = load(upper_ptr + r * S);
      transpose(upper);
      if (i != j) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) lower[r] = load(lower_ptr + r * S);
        transpose(lower);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) store(upper_ptr + r * S, lower[r]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) store(lower_ptr + r * S, upper[r]);
    }
  }
}

// Turns exponentials into probabilities p and writes dS to ds, for one tile of queries.
template <int S>
TNT_INLINE void attention_dscores(const float* v, const float* dout, int head_dim,
                                  const Vec (&inv_sum)[AttentionShape<S>::kQueryVecs], float* p,
                                  float* ds) {
  using Shape = AttentionShape<S>;
  constexpr int Q = Shape::kQueryVecs, R = Shape::kKeyRows;
  Vec dot[Q] = {}, total[Q] = {};
  for (int key = 0; key < S; key += R) {
    Vec acc[R][Q] = {}, part[Q] = {}, part_total[Q] = {};
    multiply_tile<R, Q, kChunk, 1, kChunk>(v + key, dout, head_dim, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < Q; ++i) {
        const int at = (key + r) * S + i * kLanes;
        const Vec probability = load(p + at) * inv_sum[i];
        store(p + at, probability);
        store(ds + at, acc[r][i]);
        part[i] = fma(probability, acc[r][i], part[i]);
        part_total[i] = part_total[i] + probability;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
      dot[i] = dot[i] + part[i];
      total[i] = total[i] + part_total[i];
    }
  }
  // Rounded probabilities do not sum to 1, and what they miss would be common to all of dS, whose
  // sum should vanish: divide by their sum, 1 + e, as a product with 1 - e.
#pragma GCC unroll 8
  for (int i = 0; i < Q; ++i) dot[i] = fnma(total[i] - splat(1.0f), dot[i], dot[i]);
  for (int key = 0; key < S; ++key) {
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
      const int at = key * S + i * kLanes;
      store(ds + at, load(p + at) * (load(ds + at) - dot[i]));
    }
  }
}

// One patch and head, S >= kLanes; every pointer is at the head's first row and the patch's first
// token. p and ds: S * S floats each. out may be null.
template <int S>
TNT_INLINE void attention_bwd_patch(const float* q, const float* k, const float* v,
                                    const float* dout, int head_dim, float* p, float* ds,
                                    float* out, float* dq, float* dk, float* dv) {
  using Shape = AttentionShape<S>;
  Vec one[Shape::kQueryVecs];
  for (int i = 0; i < Shape::kQueryVecs; ++i) one[i] = splat(1.0f);
  for (int t = 0; t < S; t += Shape::kQueries) {
    Vec inv_sum[Shape::kQueryVecs];
    attention_probabilities<S>(q + t, k, head_dim, p + t, inv_sum);
    if (out != nullptr) attention_mix<S>(v, p + t, head_dim, inv_sum, out + t);
    attention_dscores<S>(v, dout + t, head_dim, inv_sum, p + t, ds + t);
    attention_mix<S>(k, ds + t, head_dim, one, dq + t);
  }
  transpose_square<S>(p);
  transpose_square<S>(ds);
  for (int t = 0; t < S; t += Shape::kQueries) {
    attention_mix<S>(q, ds + t, head_dim, one, dk + t);
    attention_mix<S>(dout, p + t, head_dim, one, dv + t);
  }
}

// The same where a patch's scores fit the registers. Probabilities wait in p while dS needs them.
template <int S>
TNT_INLINE void attention_bwd_registers(const float* q, const float* k, const float* v,
                                        const float* dout, int head_dim, float* p, float* out,
                                        float* dq, float* dk, float* dv) {
  const Vec one = splat(1.0f);
  Vec m[S];
  register_scores(q, k, head_dim, m);
  const Vec inv_sum = register_softmax(m);
#pragma GCC unroll 16
  for (int j = 0; j < S; ++j) {
    m[j] = m[j] * inv_sum;
    store(p + j * S, m[j]);
  }
  if (out != nullptr) register_mix(v, m, head_dim, one, out);
  register_scores(dout, v, head_dim, m);
  Vec dot[4] = {};
#pragma GCC unroll 16
  for (int j = 0; j < S; ++j) dot[j % 4] = fma(load(p + j * S), m[j], dot[j % 4]);
  dot[0] = (dot[0] + dot[1]) + (dot[2] + dot[3]);
#pragma GCC unroll 16
  for (int j = 0; j < S; ++j) m[j] = load(p + j * S) * (m[j] - dot[0]);
  register_mix(k, m, head_dim, one, dq);
  transpose(m);
  register_mix(q, m, head_dim, one, dk);
#pragma GCC unroll 16
  for (int j = 0; j < S; ++j) m[j] = load(p + j * S);
  transpose(m);
  register_mix(dout, m, head_dim, one, dv);
}

// The same for a vector of patches, S = 4 < kLanes.
TNT_INLINE void attention_bwd_quads(const float* q, const float* k, const float* v,
                                    const float* dout, int head_dim, float* out, float* dq,
                                    float* dk, float* dv) {
  Vec p[4], ds[4];
  quad_scores(q, k, head_dim, p);
  quad_softmax(p);
  if (out != nullptr) quad_mix(v, p, head_dim, out);
  quad_scores(dout, v, head_dim, ds);
  const Vec dot = fma(p[0], ds[0], p[1] * ds[1]) + fma(p[2], ds[2], p[3] * ds[3]);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) ds[j] = p[j] * (ds[j] - dot);
  quad_mix(k, ds, head_dim, dq);
  transpose_quads(p[0], p[1], p[2], p[3]);
  transpose_quads(ds[0], ds[1], ds[2], ds[3]);
  quad_mix(q, ds, head_dim, dk);
  quad_mix(dout, p, head_dim, dv);
}

// Every patch and head of a chunk. scores: 2 * AttentionShape<S>::kScoreFloats. out, recomputed for
// the weight gradient that follows, may be null.
template <int S>
inline void attention_bwd(const float* q, const float* k, const float* v, const float* dout,
                          int num_heads, int head_dim, float* scores, float* out, float* dq,
                          float* dk, float* dv) {
  using Shape = AttentionShape<S>;
  constexpr int kStep = Shape::kManyPatches ? kLanes : S;
  for (int head = 0; head < num_heads; ++head) {
    for (int t = 0; t < kChunk; t += kStep) {
      const int64_t at = int64_t{head} * head_dim * kChunk + t;
      float* out_at = out != nullptr ? out + at : nullptr;
      if constexpr (Shape::kInRegisters) {
        attention_bwd_registers<S>(q + at, k + at, v + at, dout + at, head_dim, scores, out_at,
                                   dq + at, dk + at, dv + at);
      } else if constexpr (Shape::kManyPatches) {
        attention_bwd_quads(q + at, k + at, v + at, dout + at, head_dim, out_at, dq + at, dk + at,
                            dv + at);
      } else {
        attention_bwd_patch<S>(q + at, k + at, v + at, dout + at, head_dim, scores,
                               scores + Shape::kScoreFloats, out_at, dq + at, dk + at, dv + at);
      }
    }
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
