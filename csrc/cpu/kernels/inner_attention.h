// Attention among the S tokens of each patch, for one chunk held channel-major: queries are lanes,
// one vector per key, so that the softmax runs over registers and needs no shuffle.
//
// q holds queries already multiplied by head_dim^-0.5 log2(e); the softmax is in powers of two.
// Rows of head h are [h * head_dim, (h + 1) * head_dim) of q, k, v and out, each (C, kChunk).
#pragma once

#include "cpu/kernels/gemm.h"

namespace tnt_kernels::cpu::TNT_ISA {

// How the queries of a patch map to vectors, for S tokens per patch.
template <int S>
struct AttentionShape {
  // S < kLanes: a vector holds several patches, and keys are broadcast within 4 lanes.
  static constexpr bool kManyPatches = S < kLanes;
  static_assert(!kManyPatches || S == 4, "a group of lanes is 4 wide");
  // Otherwise: one patch at a time, kQueryVecs vectors of queries at a time ...
  static constexpr int kQueryVecs =
      kManyPatches ? 1 : (S / kLanes < kTileVecs ? S / kLanes : kTileVecs);
  static constexpr int kQueries = kQueryVecs * kLanes;
  // ... and so many keys in registers as give enough independent sums.
  static constexpr int kKeyRows = kQueryVecs == 1 && kRegisters == 32 ? (S < 16 ? S : 16) : 4;
  // floats of a score matrix in scratch: (S keys, S queries), or (4 keys, kLanes)
  static constexpr int kScoreFloats = kManyPatches ? S * kLanes : S * S;
};

// ---- One patch after another (S >= kLanes) ----

// Probabilities of kQueries queries: p[key * S + query]. q and k point to the head's first row at
// the tile's first query and the patch's first key.
template <int S>
TNT_INLINE void attention_probabilities(const float* q, const float* k, int head_dim, float* p,
                                        Vec (&inv_sum)[AttentionShape<S>::kQueryVecs]) {
  using Shape = AttentionShape<S>;
  constexpr int Q = Shape::kQueryVecs, R = Shape::kKeyRows;
  Vec largest[Q];
  for (int key = 0; key < S; key += R) {
    Vec acc[R][Q] = {};
    multiply_tile<R, Q, kChunk, 1, kChunk>(k + key, q, head_dim, acc);
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
      if (key == 0) largest[i] = acc[0][i];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        largest[i] = max(largest[i], acc[r][i]);
        store(p + (key + r) * S + i * kLanes, acc[r][i]);
      }
    }
  }
  Vec sum[Q] = {};
#pragma GCC unroll 4
  for (int key = 0; key < S; ++key) {
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
      float* at = p + key * S + i * kLanes;
      const Vec e = exp2_nonpositive(load(at) - largest[i]);
      sum[i] = sum[i] + e;
      store(at, e);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Q; ++i) inv_sum[i] = splat(1.0f) / sum[i];
}

// out[d][lane] = factor * sum_j a[d][j] m[j][lane] for head_dim rows d and Q vectors of lanes;
// a and out are rows of a chunk, m has rows of S.
template <int R, int S, int Q>
TNT_INLINE void attention_mix_rows(const float* a, const float* m, const Vec (&factor)[Q],
                                   float* out) {
  Vec acc[R][Q] = {};
  multiply_tile<R, Q, 1, kChunk, S>(a, m, S, acc);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) store(out + r * kChunk + i * kLanes, acc[r][i] * factor[i]);
  }
}

template <int S, int Q>
TNT_INLINE void attention_mix(const float* a, const float* m, int head_dim, const Vec (&factor)[Q],
                              float* out) {
  int d = 0;
  for (; d + 6 <= head_dim; d += 6) {
    attention_mix_rows<6, S, Q>(a + d * kChunk, m, factor, out + d * kChunk);
  }
  a += d * kChunk;
  out += d * kChunk;
  switch (head_dim - d) {
    case 5:
      return attention_mix_rows<5, S, Q>(a, m, factor, out);
    case 4:
      return attention_mix_rows<4, S, Q>(a, m, factor, out);
    case 3:
      return attention_mix_rows<3, S, Q>(a, m, factor, out);
    case 2:
      return attention_mix_rows<2, S, Q>(a, m, factor, out);
    case 1:
      return attention_mix_rows<1, S, Q>(a, m, factor, out);
    default:
      return;
  }
}

// ---- Many patches in a vector (S = 4 < kLanes) ----

// f(j, row) for the four keys j of every patch in a vector, with each patch's own key broadcast.
template <class F>
TNT_INLINE void for_keys_in_quad(Vec row, F f) {
  f(0, splat_in_quad<0>(row));
  f(1, splat_in_quad<1>(row));
  f(2, splat_in_quad<2>(row));
  f(3, splat_in_quad<3>(row));
}

// s[key] = sum_d q[d] k[d][key], lanes being queries.
TNT_INLINE void quad_scores(const float* q, const float* k, int head_dim, Vec (&s)[4]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) s[j] = zero();
  for (int d = 0; d < head_dim; ++d) {
    const Vec q_d = load(q + d * kChunk);
    for_keys_in_quad(load(k + d * kChunk), [&](int j, Vec k_dj) { s[j] = fma(k_dj, q_d, s[j]); });
  }
}

// s becomes the probabilities.
TNT_INLINE void quad_softmax(Vec (&s)[4]) {
  const Vec largest = max(max(s[0], s[1]), max(s[2], s[3]));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) s[j] = exp2_nonpositive(s[j] - largest);
  const Vec inv_sum = splat(1.0f) / ((s[0] + s[1]) + (s[2] + s[3]));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) s[j] = s[j] * inv_sum;
}

// out[d] = sum_j a[d][j] m[j], lanes being those of m.
TNT_INLINE void quad_mix(const float* a, const Vec (&m)[4], int head_dim, float* out) {
  for (int d = 0; d < head_dim; ++d) {
    Vec acc = zero();
    for_keys_in_quad(load(a + d * kChunk), [&](int j, Vec a_dj) { acc = fma(a_dj, m[j], acc); });
    store(out + d * kChunk, acc);
  }
}

// ---- Eq. 1 for every patch and head of a chunk ----

// out = softmax(q k^T) v. scores: AttentionShape<S>::kScoreFloats.
template <int S>
inline void attention_fwd(const float* q, const float* k, const float* v, int num_heads,
                          int head_dim, float* scores, float* out) {
  using Shape = AttentionShape<S>;
  for (int head = 0; head < num_heads; ++head) {
    const int64_t row = int64_t{head} * head_dim * kChunk;
    if constexpr (Shape::kManyPatches) {
      for (int t = 0; t < kChunk; t += kLanes) {
        Vec s[4];
        quad_scores(q + row + t, k + row + t, head_dim, s);
        quad_softmax(s);
        quad_mix(v + row + t, s, head_dim, out + row + t);
      }
    } else {
      for (int patch = 0; patch < kChunk; patch += S) {
        for (int query = 0; query < S; query += Shape::kQueries) {
          const int64_t at = row + patch + query;
          Vec inv_sum[Shape::kQueryVecs];
          attention_probabilities<S>(q + at, k + row + patch, head_dim, scores + query, inv_sum);
          attention_mix<S>(v + row + patch, scores + query, head_dim, inv_sum, out + at);
        }
      }
    }
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
