// The backward of outer_attention for bfloat16 on AMX; the formulas are in outer_attention_bwd.h.
// Strips of queries give P and dS, which are kept for the whole head in the layout of right
// operands: dV^T = dO^T P and dK^T = Q^T dS then sum over all queries without leaving the tiles.
#pragma once

#include "cpu/kernels/outer_attention_amx.h"

namespace tnt_kernels::cpu::amx {

// Tokens of which P and dS, 4 bytes for each pair of tokens, stay in a second-level cache.
constexpr int64_t kMaxBackwardTokens = 608;

// Byte offsets of what one thread holds of a head. Tokens are padded to whole steps.
struct OuterBackwardLayout {
  int64_t tokens;
  int64_t k_scores, v_scores, k_rows;  // right operands of scores, dP and dQ
  int64_t q_columns, dy_columns;       // Q^T and dO^T, row by row
  int64_t q, dy;                       // strips that reach beyond the last query
  int64_t scores, dp, ds;              // of a strip; ds is bfloat16
  int64_t all_p, all_ds, sums, bytes;

  explicit OuterBackwardLayout(const OuterAttention& call) {
    tokens = (call.num_tokens + kStep - 1) / kStep * kStep;
    const int64_t matrix = tokens * call.head_dim;
    int64_t end = 0;
    const auto take = [&end](int64_t size) {
      const int64_t start = end;
      end += (size + kRow - 1) / kRow * kRow;
      return start;
    };
    k_scores = take(2 * matrix);
    v_scores = take(2 * matrix);
    k_rows = take(2 * matrix);
    q_columns = take(2 * matrix);
    dy_columns = take(2 * matrix);
    q = take(2 * kStrip * call.head_dim);
    dy = take(2 * kStrip * call.head_dim);
    scores = take(4 * kStrip * tokens);
    dp = take(4 * kStrip * tokens);
    ds = take(2 * kStrip * tokens);
    all_p = take(2 * tokens * tokens);
    all_ds = take(2 * tokens * tokens);
    sums = take(4 * matrix);  // a strip's fit too
    bytes = end;
  }
};

// Words of the first 16 lanes and of the next, alternating.
TNT_INLINE __m512i interleave_words(__m512i halves) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}

// The transposed matrix (dim, tokens) of bfloat16 rows, one after the other; absent tokens are 0.
inline void lay_out_columns(const BFloat16* x, int64_t row, int64_t num_tokens, int64_t tokens,
                            int64_t dim, char* columns) {
  for (int64_t token = 0; token < tokens; token += kStep) {
    for (int64_t channel = 0; channel < dim; channel += kLanes) {
      const auto channels = [&](int64_t at) {
        if (at >= num_tokens) return _mm256_setzero_si256();
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + at * row + channel));
      };
      Vec words[kLanes];  // a lane holds two tokens of one channel
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const __m512i even = _mm512_castsi256_si512(channels(token + 2 * i));
        const __m512i both = _mm512_inserti64x4(even, channels(token + 2 * i + 1), 1);
        words[i] = _mm512_castsi512_ps(interleave_words(both));
      }
      transpose(words);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        char* target = columns + 2 * ((channel + i) * tokens + token);
        _mm512_storeu_ps(target, words[i]);
      }
    }
  }
}

struct RowSums {
  Vec inverse, mean;  // 1 / sum of the exponentials; mean of dP under P
};

// Scores of one query to exp(factor (score - largest)); keys from num_keys on get 0.
TNT_INLINE RowSums exponentials_and_mean(float* scores, const float* dp, int64_t num_keys,
                                         int64_t keys, float factor) {
  const Vec scale = splat(factor), nothing = splat(-__builtin_inff());
  Vec top = nothing;
  for (int64_t i = 0; i < keys; i += kLanes) {
    Vec x = load(scores + i) * scale;
    if (i + kLanes > num_keys) {
      x = _mm512_mask_mov_ps(nothing, i < num_keys ? first(static_cast<int>(num_keys - i)) : 0, x);
    }
    store(scores + i, x);
    top = max(top, x);
  }
  top = splat(largest(top));
  Vec total = zero(), dot = zero();
  for (int64_t i = 0; i < keys; i += kLanes) {
    const Vec e = exp2_coarse(load(scores + i) - top);
    store(scores + i, e);
    total = total + e;
    dot = fma(e, load(dp + i), dot);
  }
  const float inverse = 1.0f / sum(total);
  return {splat(inverse), splat(sum(dot) * inverse)};
}

// One head: P and dS of all queries, and dQ on the way; then dV and dK.
struct BackwardHead {
  const OuterAttention& call;
  const OuterBackwardLayout& at;
  char* scratch;
  const BFloat16 *q, *dy;  // the head's first channels of the first token
  BFloat16* dq;

  TNT_INLINE int64_t dim() const { return call.head_dim; }
  TNT_INLINE int64_t out_row() const { return call.num_heads * call.head_dim; }
  TNT_INLINE int64_t qkv_row() const { return 3 * out_row(); }
  TNT_INLINE float* floats(int64_t offset) const {
    return reinterpret_cast<float*>(scratch + offset);
  }

  // A strip as a left operand: where it lies, or copied where tiles would reach beyond the tensor.
  struct Strip {
    const char* rows;
    int64_t stride;
  };
  TNT_INLINE Strip strip(const BFloat16* x, int64_t stride, int64_t first, int64_t copy) const {
    const char* rows = reinterpret_cast<const char*>(x + first * stride);
    if (first + kStrip <= call.num_tokens) return {rows, 2 * stride};
    for (int64_t i = 0; i < kStrip; ++i) {
      char* target = scratch + copy + 2 * i * dim();
      const auto size = static_cast<size_t>(2 * dim());
      if (first + i < call.num_tokens) {
        __builtin_memcpy(target, rows + 2 * i * stride, size);
      } else {
        __builtin_memset(target, 0, size);
      }
    }
    return {scratch + copy, 2 * dim()};
  }

  // Scores and dP of two queries (the second may be absent) to P and dS.
  TNT_INLINE void finish_pair(int64_t first, int64_t row, bool both) const {
    const int64_t tokens = at.tokens, steps = tokens / kStep;
    float *p[2], *dp[2];
    RowSums sums[2] = {{zero(), zero()}, {zero(), zero()}};
    for (int i = 0; i < 2; ++i) {
      p[i] = floats(at.scores) + (row + i) * tokens;
      dp[i] = floats(at.dp) + (row + i) * tokens;
      if (i == 0 || both) {
        sums[i] = exponentials_and_mean(p[i], dp[i], call.num_tokens, tokens, call.scale * kLog2E);
      }
    }
    const int64_t tile_row = first / kStep * kTile + row / 2 * kRow;
    char* ds = scratch + at.ds + 2 * row * tokens;
    for (int64_t i = 0; i < tokens; i += kLanes) {
      Vec probs[2], grads[2];
      for (int j = 0; j < 2; ++j) {
        // an absent query has no part in any sum, whatever its tiles hold
        const bool present = j == 0 || both;
        probs[j] = present ? load(p[j] + i) * sums[j].inverse : zero();
        grads[j] = present ? probs[j] * (load(dp[j] + i) - sums[j].mean) : zero();
      }
      const auto both_p = (__m512i)_mm512_cvtne2ps_pbh(probs[1], probs[0]);
      const auto both_ds = (__m512i)_mm512_cvtne2ps_pbh(grads[1], grads[0]);
      const int64_t offset = i / kLanes * steps * kTile + tile_row;
      _mm512_store_si512(scratch + at.all_p + offset, interleave_words(both_p));
      _mm512_store_si512(scratch + at.all_ds + offset, interleave_words(both_ds));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(ds + 2 * i), _mm512_castsi512_si256(both_ds));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(ds + 2 * (tokens + i)),
                          _mm512_extracti64x4_epi64(both_ds, 1));
    }
  }

  TNT_INLINE void no_pair(int64_t first, int64_t row) const {
    const int64_t tile_row = first / kStep * kTile + row / 2 * kRow;
    for (int64_t i = 0; i < at.tokens; i += kLanes) {
      const int64_t offset = i / kLanes * (at.tokens / kStep) * kTile + tile_row;
      _mm512_store_si512(scratch + at.all_p + offset, _mm512_setzero_si512());
      _mm512_store_si512(scratch + at.all_ds + offset, _mm512_setzero_si512());
    }
  }

  inline void query_strips() const {
    const int64_t tokens = at.tokens, steps = dim() / kStep, columns = tokens / kLanes;
    for (int64_t first = 0; first < call.num_tokens; first += kStrip) {
      const int64_t left = call.num_tokens - first;
      const int64_t rows = left < kStrip ? left : kStrip;
      const Strip queries = strip(q, qkv_row(), first, at.q);
      const Strip grads = strip(dy, out_row(), first, at.dy);
      multiply_strip<true>(queries.rows, queries.stride, scratch + at.k_scores, steps, columns,
                           scratch + at.scores, 4 * tokens);
      multiply_strip<true>(grads.rows, grads.stride, scratch + at.v_scores, steps, columns,
                           scratch + at.dp, 4 * tokens);
      for (int64_t row = 0; row < kStrip; row += 2) {
        if (row < rows) {
          finish_pair(first, row, row + 1 < rows);
        } else {
          no_pair(first, row);
        }
      }
      multiply_strip<true>(scratch + at.ds, 2 * tokens, scratch + at.k_rows, tokens / kStep,
                           dim() / kLanes, scratch + at.sums, 4 * dim());
      write(floats(at.sums), dim(), rows, dq + first * qkv_row(), call.scale);
    }
  }

  // `count` rows of sums, times factor, to a tensor like qkv.
  TNT_INLINE void write(const float* sums, int64_t stride, int64_t count, BFloat16* target,
                        float factor) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < dim(); j += kLanes) {
        const __m256bh rounded = _mm512_cvtneps_pbh(load(sums + i * stride + j) * splat(factor));
        __builtin_memcpy(target + i * qkv_row() + j, &rounded, sizeof(rounded));
      }
    }
  }

  // target (num_tokens, dim) = factor ((dim, queries) times (queries, keys))^T
  inline void sum_over_queries(int64_t columns, int64_t pairs, BFloat16* target,
                               float factor) const {
    const int64_t tokens = at.tokens;
    for (int64_t channel = 0; channel < dim(); channel += kStrip) {
      multiply_strip<true>(scratch + columns + 2 * channel * tokens, 2 * tokens, scratch + pairs,
                           tokens / kStep, tokens / kLanes,
                           scratch + at.sums + 4 * channel * tokens, 4 * tokens);
    }
    for (int64_t channel = 0; channel < dim(); channel += kLanes) {
      for (int64_t token = 0; token < call.num_tokens; token += kLanes) {
        const float* source = floats(at.sums) + channel * tokens + token;
        Vec rows[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = load(source + i * tokens) * splat(factor);
        transpose(rows);
        const int64_t left = call.num_tokens - token;
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          if (i < left) {
            const __m256bh rounded = _mm512_cvtneps_pbh(rows[i]);
            __builtin_memcpy(target + (token + i) * qkv_row() + channel, &rounded, sizeof(rounded));
          }
        }
      }
    }
  }

  inline void run() const {
    const int64_t tokens = call.num_tokens, width = out_row();
    const BFloat16 *k = q + width, *v = k + width;
    lay_out_keys(k, qkv_row(), tokens, at.tokens, dim(), scratch + at.k_scores);
    lay_out_keys(v, qkv_row(), tokens, at.tokens, dim(), scratch + at.v_scores);
    lay_out_values(k, qkv_row(), tokens, at.tokens, dim(), scratch + at.k_rows);
    lay_out_columns(q, qkv_row(), tokens, at.tokens, dim(), scratch + at.q_columns);
    lay_out_columns(dy, out_row(), tokens, at.tokens, dim(), scratch + at.dy_columns);
    query_strips();
    sum_over_queries(at.q_columns, at.all_ds, dq + width, call.scale);
    sum_over_queries(at.dy_columns, at.all_p, dq + 2 * width, 1.0f);
  }
};

inline void outer_backward(const OuterAttention& call, int64_t first, int64_t last, float* base) {
  const FlushDenormals flush;
  const OuterBackwardLayout at(call);
  configure_whole_tiles();
  for (int64_t head = first; head < last; ++head) {
    const int64_t width = call.num_heads * call.head_dim;
    const int64_t token = head / call.num_heads * call.num_tokens;
    const int64_t channel = head % call.num_heads * call.head_dim;
    const int64_t in_qkv = 3 * token * width + channel;
    BackwardHead{call,
                 at,
                 reinterpret_cast<char*>(base),
                 static_cast<const BFloat16*>(call.qkv) + in_qkv,
                 static_cast<const BFloat16*>(call.dy) + token * width + channel,
                 static_cast<BFloat16*>(call.out) + in_qkv}
        .run();
  }
  tile_release();
}

}  // namespace tnt_kernels::cpu::amx
