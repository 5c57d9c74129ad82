// Backward of the inner transformer block, chunk by chunk: dmid from Eq. 7, then dx from Eq. 6.
//
// Nothing but x and mid was kept: a chunk's q, k, v, probabilities and hidden layer are computed
// again, which costs less than reading them would. Weight gradients are taken with respect to the
// folded weights, against the normalised tokens, and unfolded once at the end (inner_dw.h).
#pragma once

#include "cpu/kernels/inner_attention_bwd.h"
#include "cpu/kernels/inner_fwd.h"
#include "cpu/kernels/weight_grad.h"

namespace tnt_kernels::cpu::TNT_ISA {

// How the gradient that attention_bwd writes relates to that of row n of q, k, v.
//   q: scores are scale * q.k, and dq leaves the scale out.
//   k: dk was formed with q * scale * log2(e).
TNT_INLINE float qkv_grad_scale(const InnerCall& call, int n) {
  constexpr float kLn2 = 0.69314718055994531f;
  if (n < call.dim) return query_scale(call) * kLn2;
  return n < 2 * call.dim ? kLn2 : 1.0f;
}

// ---- Packed weights: those of forward that are computed again, and the transposed ones ----

struct InnerBwdPacked {
  const float *qkv, *qkv_bias;  // to recompute q, k, v
  const float *proj_t, *qkv_t;  // dmixed = proj^T dmid; dnormed = qkv^T dqkv
  const float *fc1, *fc1_bias;  // to recompute the hidden layer
  const float *fc2_t, *fc1_t;   // dhidden = fc2^T dout; dnormed = fc1^T dhidden
  int64_t floats;
};

inline InnerBwdPacked inner_bwd_packed_layout(const InnerCall& call, const float* packed) {
  const int64_t dim = call.dim, hidden = call.hidden_dim;
  InnerBwdPacked p = {};
  const float* at = packed;
  const auto take = [&](int64_t floats) {
    const float* here = at;
    at += floats;
    return here;
  };
  if (call.has_attention) {
    p.qkv = take(3 * dim * dim);
    p.qkv_bias = take(3 * dim);
    p.proj_t = take(dim * dim);
    p.qkv_t = take(3 * dim * dim);
  }
  if (call.has_mlp) {
    p.fc1 = take(hidden * dim);
    p.fc1_bias = take(hidden);
    p.fc2_t = take(hidden * dim);
    p.fc1_t = take(hidden * dim);
  }
  p.floats = at - packed;
  return p;
}

inline int64_t inner_bwd_packed_floats(const InnerCall& call) {
  return inner_bwd_packed_layout(call, nullptr).floats;
}

inline void inner_bwd_pack(const InnerCall& call, float* packed) {
  const InnerWeights& w = call.weights;
  const int dim = call.dim, hidden = call.hidden_dim;
  if (call.has_attention) {
    packed = pack_qkv(call, packed);
    packed = pack_rows(
        dim, dim, [&](int i, int o) { return w.proj_weight[int64_t{o} * dim + i]; }, packed);
    packed = pack_rows(
        dim, 3 * dim,
        [&](int c, int n) {
          return qkv_row(call, n)[c] * w.norm1_weight[c] * qkv_grad_scale(call, n);
        },
        packed);
  }
  if (call.has_mlp) {
    packed = pack_fc1(call, packed);
    for_hidden_blocks(hidden, [&](int first, int units) {
      packed = pack_rows(
          units, dim, [&](int h, int c) { return w.fc2_weight[int64_t{c} * hidden + first + h]; },
          packed);
    });
    for_hidden_blocks(hidden, [&](int first, int units) {
      packed = pack_rows(
          dim, units,
          [&](int c, int h) {
            return w.fc1_weight[int64_t{first + h} * dim + c] * w.norm2_weight[c];
          },
          packed);
    });
  }
}

// ---- Partial weight gradients of one slice ----

struct InnerPartial {
  TokenMajor shape;
  // (rows, shape.stride): rows of q, k, v; proj's inputs; hidden units; hidden units
  float *qkv, *proj_t, *fc1, *fc2_t;
  // (rows, kLanes)
  float *qkv_bias, *proj_bias, *fc1_bias, *fc2_bias;
  int64_t floats;
};

inline InnerPartial inner_partial(const InnerCall& call, float* partial) {
  InnerPartial p = {};
  p.shape = token_major(call.dim);
  float* at = partial;
  const auto take = [&](int64_t rows, int64_t columns) {
    float* here = at;
    at += rows * columns;
    return here;
  };
  const int dim = call.dim, hidden = call.hidden_dim, stride = p.shape.stride;
  if (call.has_attention) {
    p.qkv = take(3 * dim, stride);
    p.proj_t = take(dim, stride);
    p.qkv_bias = take(3 * dim, kLanes);
    p.proj_bias = take(dim, kLanes);
  }
  if (call.has_mlp) {
    p.fc1 = take(hidden, stride);
    p.fc2_t = take(hidden, stride);
    p.fc1_bias = take(hidden, kLanes);
    p.fc2_bias = take(dim, kLanes);
  }
  p.floats = at - partial;
  return p;
}

inline int64_t inner_dw_partial_floats(const InnerCall& call) {
  return inner_partial(call, nullptr).floats;
}

// ---- Scratch of one thread ----

struct InnerBwdScratch {
  float* dy;      // dout, then dmid, then dx
  float* normed;  // of the half at hand
  float* branch;  // gradient of the half's branch: dy times drop path
  float *dnormed, *mixed, *dmixed;
  float *wide, *dwide;         // q, k, v or the hidden layer, and their gradient
  float *tokens_a, *tokens_b;  // token-major copies; also staging
  float *rstd, *scale, *scores;
  int64_t floats;
};

inline InnerBwdScratch inner_bwd_scratch(const InnerCall& call, float* base) {
  const int64_t rows = tile_rows(call.dim);
  int64_t wide = call.has_attention ? 3 * rows : rows;
  if (call.has_mlp && hidden_block(call.hidden_dim) > wide) wide = hidden_block(call.hidden_dim);
  int64_t token_floats = token_major(call.dim).floats();
  if (token_floats < rows * kChunk) token_floats = rows * kChunk;
  float* at = base;
  const auto take = [&](int64_t floats) {
    float* here = at;
    at += floats;
    return here;
  };
  InnerBwdScratch s;
  s.dy = take(rows * kChunk);
  s.normed = take(rows * kChunk);
  s.branch = take(rows * kChunk);
  s.dnormed = take(rows * kChunk);
  s.mixed = take(call.has_attention ? rows * kChunk : 0);
  s.dmixed = take(call.has_attention ? rows * kChunk : 0);
  s.wide = take(wide * kChunk);
  s.dwide = take(wide * kChunk);
  s.tokens_a = take(token_floats);
  s.tokens_b = take(token_floats);
  s.rstd = take(kChunk);
  s.scale = take(kChunk);
  s.scores = take(call.has_attention ? 2 * score_floats(call.num_tokens) : 0);
  s.floats = at - base;
  return s;
}

inline int64_t inner_bwd_scratch_floats(const InnerCall& call) {
  return inner_bwd_scratch(call, nullptr).floats;
}

// s.branch = s.dy * drop_path
inline void scale_branch(const InnerCall& call, const float* drop_path, ChunkRange range,
                         const InnerBwdScratch& s) {
  load_drop_path(drop_path, call.num_tokens, range, s.scale);
  for (int c = 0; c < call.dim; ++c) {
    for (int t = 0; t < kChunk; t += kLanes) {
      store(s.branch + c * kChunk + t, load(s.dy + c * kChunk + t) * load(s.scale + t));
    }
  }
}

// Eq. 7: s.dy turns from the gradient of the output into that of mid, given the tile of mid in
// s.normed. Without need_dx, only the weight gradients are formed.
inline void mlp_half_bwd(const InnerCall& call, const InnerBwdPacked& p, const InnerBwdScratch& s,
                         const InnerPartial& dw, ChunkRange range, bool need_dx) {
  const int dim = call.dim, hidden = call.hidden_dim;
  normalize_tile(s.normed, dim, call.eps, s.normed, s.rstd);
  scale_branch(call, call.drop_path_mlp, range, s);
  if (call.need_dw) {
    to_token_major(dw.shape, s.branch, s.tokens_a);
    to_token_major(dw.shape, s.normed, s.tokens_b);
    add_bias_grad(s.branch, dim, dw.fc2_bias);
  }
  for_hidden_blocks(hidden, [&](int first, int units) {
    const int64_t at = int64_t{first} * dim;
    gemm<Write::kBias>(units, dim, p.fc1 + at, s.normed, s.wide, p.fc1_bias + first);
    for (int i = 0; i < units * kChunk; i += kLanes) {
      Vec slope;
      store(s.wide + i, gelu_and_slope(load(s.wide + i), slope));
      store(s.dwide + i, slope);
    }
    gemm<Write::kMultiply>(units, dim, p.fc2_t + at, s.branch, s.dwide);
    if (call.need_dw) {
      const int64_t row = int64_t{first} * dw.shape.stride;
      add_weight_grad(dw.shape, s.wide, units, s.tokens_a, dw.fc2_t + row);
      add_weight_grad(dw.shape, s.dwide, units, s.tokens_b, dw.fc1 + row);
      add_bias_grad(s.dwide, units, dw.fc1_bias + first * kLanes);
    }
    if (!need_dx) return;
    if (first == 0) {
      gemm<Write::kSet>(dim, units, p.fc1_t + at, s.dwide, s.dnormed);
    } else {
      gemm<Write::kAdd>(dim, units, p.fc1_t + at, s.dwide, s.dnormed);
    }
  });
  if (!need_dx) return;
  normalize_tile_bwd(s.normed, s.dnormed, s.rstd, s.dy, dim, s.dy);
}

// Eq. 6: s.dy turns from the gradient of mid into that of x, given the tile of x in s.normed.
inline void attention_half_bwd(const InnerCall& call, const InnerBwdPacked& p,
                               const InnerBwdScratch& s, const InnerPartial& dw, ChunkRange range) {
  const int dim = call.dim;
  normalize_tile(s.normed, dim, call.eps, s.normed, s.rstd);
  scale_branch(call, call.drop_path_attn, range, s);
  gemm<Write::kBias>(3 * dim, dim, p.qkv, s.normed, s.wide, p.qkv_bias);
  gemm<Write::kSet>(dim, dim, p.proj_t, s.branch, s.dmixed);
  const float *q = s.wide, *k = q + dim * kChunk, *v = k + dim * kChunk;
  float *dq = s.dwide, *dk = dq + dim * kChunk, *dv = dk + dim * kChunk;
  visit_num_tokens(call.num_tokens, [&](auto num_tokens) {
    attention_bwd<decltype(num_tokens)::value>(q, k, v, s.dmixed, call.num_heads,
                                               dim / call.num_heads, s.scores,
                                               call.need_dw ? s.mixed : nullptr, dq, dk, dv);
  });
  if (call.need_dw) {
    to_token_major(dw.shape, s.branch, s.tokens_a);
    to_token_major(dw.shape, s.normed, s.tokens_b);
    add_weight_grad(dw.shape, s.mixed, dim, s.tokens_a, dw.proj_t);
    add_weight_grad(dw.shape, s.dwide, 3 * dim, s.tokens_b, dw.qkv);
    add_bias_grad(s.branch, dim, dw.proj_bias);
    add_bias_grad(s.dwide, 3 * dim, dw.qkv_bias);
  }
  if (call.dx == nullptr) return;
  gemm<Write::kSet>(dim, 3 * dim, p.qkv_t, s.dwide, s.dnormed);
  normalize_tile_bwd(s.normed, s.dnormed, s.rstd, s.dy, dim, s.dy);
}

inline void inner_bwd(const InnerCall& call, const InnerSlice& slice) {
  const FlushDenormals flush;
  const InnerBwdPacked p = inner_bwd_packed_layout(call, slice.packed);
  const InnerBwdScratch s = inner_bwd_scratch(call, slice.scratch);
  const InnerPartial dw = inner_partial(call, slice.dw_partial);
  const void* mid = call.has_attention ? call.mid : call.x;
  for (int64_t chunk = slice.begin; chunk < slice.end; ++chunk) {
    const ChunkRange range = chunk_range(call, chunk);
    load_tile(call.dtype, call.dy, call.dim, range, s.tokens_a, s.dy);
    for (int c = 0; c < call.dim; ++c) {  // tokens past the end add nothing to weight gradients
      for (int t = range.count; t < kChunk; ++t) s.dy[c * kChunk + t] = 0.0f;
    }
    if (call.has_mlp) {
      load_tile(call.dtype, mid, call.dim, range, s.tokens_a, s.normed);
      mlp_half_bwd(call, p, s, dw, range, call.dx != nullptr || call.has_attention);
    }
    if (call.has_attention) {
      load_tile(call.dtype, call.x, call.dim, range, s.tokens_a, s.normed);
      attention_half_bwd(call, p, s, dw, range);
    }
    if (call.dx != nullptr) {
      store_tile(call.dtype, s.dy, call.dim, range, s.tokens_a, call.dx);
    }
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
