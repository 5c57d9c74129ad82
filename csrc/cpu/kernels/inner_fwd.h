// Forward of the inner transformer block: Eq. 6, Eq. 7, or both, chunk by chunk.
//
//   mid = x + drop_path * proj(MSA(LN(x)))        out = mid + drop_path * fc2(gelu(fc1(LN(mid))))
//
// One thread takes a chunk of 64 tokens through everything: between reading x and writing out,
// nothing leaves the core's caches. LayerNorm's affine part and the softmax's scale are folded into
// the packed weights.
#pragma once

#include "cpu/kernels/inner_attention.h"
#include "cpu/kernels/inner_tile.h"

namespace tnt_kernels::cpu::TNT_ISA {

inline bool inner_supports(const InnerCall& call) {
  const int s = call.num_tokens;
  return !call.has_attention || s == 4 || s == 16 || s == 64;
}

// f(std::integral_constant-like S): the one place that lists the token counts.
template <int S>
struct NumTokens {
  static constexpr int value = S;
};
template <class F>
TNT_INLINE void visit_num_tokens(int num_tokens, F f) {
  if (num_tokens == 16) {
    f(NumTokens<16>());
  } else if (num_tokens == 4) {
    f(NumTokens<4>());
  } else {
    f(NumTokens<64>());
  }
}

TNT_INLINE int score_floats(int num_tokens) {
  int floats = 0;
  visit_num_tokens(num_tokens,
                   [&](auto s) { floats = AttentionShape<decltype(s)::value>::kScoreFloats; });
  return floats;
}

// The q rows of the stacked (3C, C) q, k, v matrix also take this factor.
TNT_INLINE float query_scale(const InnerCall& call) {
  return kLog2E / __builtin_sqrtf(static_cast<float>(call.dim / call.num_heads));
}

TNT_INLINE const float* qkv_row(const InnerCall& call, int n) {
  const InnerWeights& w = call.weights;
  const int64_t dim = call.dim;
  return n < 2 * dim ? w.qk_weight + n * dim : w.v_weight + (n - 2 * dim) * dim;
}

TNT_INLINE float bias_or_zero(const float* bias, int64_t n) { return bias ? bias[n] : 0.0f; }

// What a linear layer after LayerNorm adds: its bias and its weights' response to LayerNorm's.
TNT_INLINE float folded_bias(const float* row, const float* norm_bias, int dim, float bias) {
  for (int c = 0; c < dim; ++c) bias += row[c] * norm_bias[c];
  return bias;
}

// The hidden layer is taken in blocks of about kHiddenBlock units, so that a block's activations
// stay in the L1 cache from fc1 to fc2. fc1 and fc2 are packed block by block, each as a matrix of
// its own.
constexpr int kHiddenBlock = 8 * kTileRows;

TNT_INLINE int hidden_block(int hidden_dim) {
  const int count = (hidden_dim + kHiddenBlock - 1) / kHiddenBlock;
  return round_up((hidden_dim + count - 1) / count, kTileRows);
}

// f(first, units) for every block.
template <class F>
TNT_INLINE void for_hidden_blocks(int hidden_dim, F f) {
  const int block = hidden_block(hidden_dim);
  for (int first = 0; first < hidden_dim; first += block) {
    f(first, hidden_dim - first < block ? hidden_dim - first : block);
  }
}

// Packed weights and biases of the forward pass, in the order in which they lie.
struct InnerPacked {
  const float *qkv, *qkv_bias, *proj, *proj_bias, *fc1, *fc1_bias, *fc2, *fc2_bias;
  int64_t floats;
};

inline InnerPacked inner_packed_layout(const InnerCall& call, const float* packed) {
  const int64_t dim = call.dim, hidden = call.hidden_dim;
  InnerPacked p = {};
  const float* at = packed;
  const auto take = [&](int64_t floats) {
    const float* here = at;
    at += floats;
    return here;
  };
  if (call.has_attention) {
    p.qkv = take(3 * dim * dim);
    p.qkv_bias = take(3 * dim);
    p.proj = take(dim * dim);
    p.proj_bias = take(dim);
  }
  if (call.has_mlp) {
    p.fc1 = take(hidden * dim);
    p.fc1_bias = take(hidden);
    p.fc2 = take(dim * hidden);
    p.fc2_bias = take(dim);
  }
  p.floats = at - packed;
  return p;
}

inline int64_t inner_fwd_packed_floats(const InnerCall& call) {
  return inner_packed_layout(call, nullptr).floats;
}

inline float* pack_qkv(const InnerCall& call, float* packed) {
  const InnerWeights& w = call.weights;
  const int dim = call.dim;
  const float q_scale = query_scale(call);
  const auto scale = [&](int n) { return n < dim ? q_scale : 1.0f; };
  packed = pack_rows(
      3 * dim, dim,
      [&](int n, int c) { return qkv_row(call, n)[c] * w.norm1_weight[c] * scale(n); }, packed);
  for (int n = 0; n < 3 * dim; ++n) {
    const float bias =
        n < 2 * dim ? bias_or_zero(w.qk_bias, n) : bias_or_zero(w.v_bias, n - 2 * dim);
    *packed++ = folded_bias(qkv_row(call, n), w.norm1_bias, dim, bias) * scale(n);
  }
  return packed;
}

inline float* pack_fc1(const InnerCall& call, float* packed) {
  const InnerWeights& w = call.weights;
  const int64_t dim = call.dim;
  for_hidden_blocks(call.hidden_dim, [&](int first, int units) {
    packed = pack_rows(
        units, call.dim,
        [&](int n, int c) { return w.fc1_weight[(first + n) * dim + c] * w.norm2_weight[c]; },
        packed);
  });
  for (int n = 0; n < call.hidden_dim; ++n) {
    *packed++ = folded_bias(w.fc1_weight + n * dim, w.norm2_bias, call.dim, w.fc1_bias[n]);
  }
  return packed;
}

inline void inner_fwd_pack(const InnerCall& call, float* packed) {
  const InnerWeights& w = call.weights;
  const int64_t dim = call.dim, hidden = call.hidden_dim;
  if (call.has_attention) {
    packed = pack_qkv(call, packed);
    packed = pack_rows(dim, dim, [&](int n, int i) { return w.proj_weight[n * dim + i]; }, packed);
    for (int64_t n = 0; n < dim; ++n) *packed++ = w.proj_bias[n];
  }
  if (call.has_mlp) {
    packed = pack_fc1(call, packed);
    for_hidden_blocks(call.hidden_dim, [&](int first, int units) {
      packed = pack_rows(
          dim, units, [&](int n, int h) { return w.fc2_weight[n * hidden + first + h]; }, packed);
    });
    for (int64_t n = 0; n < dim; ++n) *packed++ = w.fc2_bias[n];
  }
}

// ---- Scratch of one thread: rows of kChunk floats ----

struct InnerFwdScratch {
  float *x, *normed, *scale;
  float* wide;    // q, k, v; then a block of the hidden layer; then staging
  float* branch;  // what the MLP adds
  float* scores;
  int64_t floats;
};

inline InnerFwdScratch inner_fwd_scratch(const InnerCall& call, float* base) {
  const int rows = tile_rows(call.dim);
  int wide = call.has_attention ? 3 * rows : rows;
  const int block = call.has_mlp ? hidden_block(call.hidden_dim) : 0;
  if (block > wide) wide = block;
  InnerFwdScratch s;
  s.x = base;
  s.normed = s.x + rows * kChunk;
  s.branch = s.normed + rows * kChunk;
  s.wide = s.branch + rows * kChunk;
  s.scale = s.wide + int64_t{wide} * kChunk;
  s.scores = s.scale + kChunk;
  s.floats = s.scores + (call.has_attention ? score_floats(call.num_tokens) : 0) - base;
  return s;
}

inline int64_t inner_fwd_scratch_floats(const InnerCall& call) {
  return inner_fwd_scratch(call, nullptr).floats;
}

// Eq. 6 on s.x, in place.
inline void attention_half_fwd(const InnerCall& call, const InnerPacked& p,
                               const InnerFwdScratch& s, ChunkRange range) {
  const int dim = call.dim;
  normalize_tile(s.x, dim, call.eps, s.normed, nullptr);
  gemm<Write::kBias>(3 * dim, dim, p.qkv, s.normed, s.wide, p.qkv_bias);
  const float *q = s.wide, *k = q + dim * kChunk, *v = k + dim * kChunk;
  float* mixed = s.normed;  // no longer needed
  visit_num_tokens(call.num_tokens, [&](auto num_tokens) {
    attention_fwd<decltype(num_tokens)::value>(q, k, v, call.num_heads, dim / call.num_heads,
                                               s.scores, mixed);
  });
  load_drop_path(call.drop_path_attn, call.num_tokens, range, s.scale);
  gemm<Write::kResidual>(dim, dim, p.proj, mixed, s.x, p.proj_bias, s.scale);
}

// Eq. 7 on s.x, in place.
inline void mlp_half_fwd(const InnerCall& call, const InnerPacked& p, const InnerFwdScratch& s,
                         ChunkRange range) {
  const int dim = call.dim, hidden = call.hidden_dim;
  normalize_tile(s.x, dim, call.eps, s.normed, nullptr);
  for_hidden_blocks(hidden, [&](int first, int units) {
    gemm<Write::kBias>(units, dim, p.fc1 + first * dim, s.normed, s.wide, p.fc1_bias + first);
    // a pass of its own, since gelu's tables leave no registers for the product's sums
    for (int i = 0; i < units * kChunk; i += kLanes) store(s.wide + i, gelu(load(s.wide + i)));
    const float* fc2 = p.fc2 + first * dim;
    if (first == 0) {
      gemm<Write::kBias>(dim, units, fc2, s.wide, s.branch, p.fc2_bias);
    } else {
      gemm<Write::kAdd>(dim, units, fc2, s.wide, s.branch);
    }
  });
  load_drop_path(call.drop_path_mlp, call.num_tokens, range, s.scale);
  for (int c = 0; c < dim; ++c) {
    for (int t = 0; t < kChunk; t += kLanes) {
      float* at = s.x + c * kChunk + t;
      store(at, fma(load(s.branch + c * kChunk + t), load(s.scale + t), load(at)));
    }
  }
}

inline void inner_fwd(const InnerCall& call, const InnerSlice& slice) {
  const FlushDenormals flush;
  const InnerPacked p = inner_packed_layout(call, slice.packed);
  const InnerFwdScratch s = inner_fwd_scratch(call, slice.scratch);
  for (int64_t chunk = slice.begin; chunk < slice.end; ++chunk) {
    const ChunkRange range = chunk_range(call, chunk);
    load_tile(call.dtype, call.x, call.dim, range, s.wide, s.x);
    if (call.has_attention) attention_half_fwd(call, p, s, range);
    if (call.mid != nullptr) store_tile(call.dtype, s.x, call.dim, range, s.wide, call.mid);
    if (call.has_mlp) mlp_half_fwd(call, p, s, range);
    store_tile(call.dtype, s.x, call.dim, range, s.wide, call.out);
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
