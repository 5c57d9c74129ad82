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
  static constexpr bool kInRegisters = S == 16 && kLanes == 16 && kRegisters == 32;
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
  for (int key = 0; key < S; key += 4) {
    Vec part[Q] = {};  // sums of sums: shorter chains, smaller errors
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < Q; ++i) {
        float* at = p + (key + r) * S + i * kLanes;
        const Vec e = exp2_nonpositive(load(at) - largest[i]);
        part[i] = part[i] + e;
        store(at, e);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) sum[i] = sum[i] + part[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < Q; ++i) inv_sum[i] = splat(1.0f) / sum[i];
}

// out[d][lane] = factor * sum_j a[d][j] m[j][lane] for head_dim rows d and Q vectors of lanes;
// a and out are rows of a chunk, m has rows of S.
template <int R, int S, int Q>
TNT_INLINE void attention_mix_rows(const float* a, const float* m, const Vec (&factor)[Q],
                                   float* out) {
  constexpr int kPart = S < 16 ? S : 16;  // sums of sums: smaller errors
  Vec acc[R][Q] = {};
  for (int j = 0; j < S; j += kPart) {
    Vec sum[R][Q] = {};
    multiply_tile<R, Q, 1, kChunk, S>(a + j, m + j * S, kPart, sum);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < Q; ++i) acc[r][i] = acc[r][i] + sum[r][i];
    }
  }
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

// ---- One patch is one vector, and its scores fit the registers (S = kLanes = 16) ----

// s[j] = sum_d q[d] k[d][j], lanes being queries.
template <int S>
TNT_INLINE void register_scores(const float* q, const float* k, int head_dim, Vec (&s)[S]) {
#pragma GCC unroll 16
  for (int j = 0; j < S; ++j) s[j] = zero();
  for (int d = 0; d < head_dim; ++d) {
    const Vec q_d = load(q + d * kChunk);
#pragma GCC unroll 16
    for (int j = 0; j < S; ++j) s[j] = fma(splat(k[d * kChunk + j]), q_d, s[j]);
  }
}

// s becomes exponentials; returns one over their sum.
template <int S>
TNT_INLINE Vec register_softmax(Vec (&s)[S]) {
  Vec most[S / 4], sum[S / 4];
#pragma GCC unroll 4
  for (int j = 0; j < S / 4; ++j) {
    most[j] = max(max(s[j], s[j + S / 4]), max(s[j + S / 2], s[j + 3 * S / 4]));
  }
  const Vec largest = max(max(most[0], most[1]), max(most[2], most[3]));
#pragma GCC unroll 16
  for (int j = 0; j < S; ++j) s[j] = exp2_nonpositive(s[j] - largest);
#pragma GCC unroll 4
  for (int j = 0; j < S / 4; ++j) {
    sum[j] = (s[j] + s[j + S / 4]) + (s[j + S / 2] + s[j + 3 * S / 4]);
  }
  return splat(1.0f) / ((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// out[d] = factor * sum_j a[d][j] m[j] for R rows d. Even and odd j are summed apart: R chains
// alone would leave the multipliers waiting.
template <int R, int S>
TNT_INLINE void register_mix_rows(const float* a, const Vec (&m)[S], Vec factor, float* out) {
  Vec even[R] = {}, odd[R] = {};
#pragma GCC unroll 16
  for (int j = 0; j < S; j += 2) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      even[r] = fma(splat(a[r * kChunk + j]), m[j], even[r]);
      odd[r] = fma(splat(a[r * kChunk + j + 1]), m[j + 1], odd[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store(out + r * kChunk, (even[r] + odd[r]) * factor);
}

template <int S>
TNT_INLINE void register_mix(const float* a, const Vec (&m)[S], int head_dim, Vec factor,
                             float* out) {
  for (; head_dim >= 6; head_dim -= 6) {
    register_mix_rows<6>(a, m, factor, out);
    a += 6 * kChunk;
    out += 6 * kChunk;
  }
  switch (head_dim) {
    case 5:
      return register_mix_rows<5>(a, m, factor, out);
    case 4:
      return register_mix_rows<4>(a, m, factor, out);
    case 3:
      return register_mix_rows<3>(a, m, factor, out);
    case 2:
      return register_mix_rows<2>(a, m, factor, out);
    case 1:
      return register_mix_rows<1>(a, m, factor, out);
    default:
      return;
  }
}

template <int S>
TNT_INLINE void register_attention(const float* q, const float* k, const float* v, int head_dim,
                                   float* out) {
  Vec p[S];
  register_scores(q, k, head_dim, p);
  const Vec inv_sum = register_softmax(p);
  register_mix(v, p, head_dim, inv_sum, out);
}

// ---- Eq. 1 for every patch and head of a chunk ----

// out = softmax(q k^T) v. scores: AttentionShape<S>::kScoreFloats.
template <int S>
inline void attention_fwd(const float* q, const float* k, const float* v, int num_heads,
                          int head_dim, float* scores, float* out) {
  using Shape = AttentionShape<S>;
  for (int head = 0; head < num_heads; ++head) {
    const int64_t row = int64_t{head} * head_dim * kChunk;
    if constexpr (Shape::kInRegisters) {
      for (int t = 0; t < kChunk; t += kLanes) {
        register_attention<S>(q + row + t, k + row + t, v + row + t, head_dim, out + row + t);
      }
    } else if constexpr (Shape::kManyPatches) {
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
