// Weight gradients summed over tokens: dw[n][c] += sum_token g[n][token] a[c][token].
//
// The tokens are the lanes of every tile, so this sum would run across lanes. Instead a is turned
// token-major once per chunk, channels c become the lanes, and g is broadcast; the transposes are
// few, since a always has the narrow width C. Where C fills its last vector badly (24 of 32 lanes),
// two tokens share a vector: lanes 2c and 2c + 1 belong to channel c of an even and an odd token, g
// is broadcast by pairs, and the two halves of each sum meet at the very end.
//
// Each chunk is summed from zero and then added: sums of sums keep rounding errors small.
#pragma once

#include "cpu/kernels/gemm.h"

namespace tnt_kernels::cpu::TNT_ISA {

// The token-major form of a (C, kChunk) tile.
struct TokenMajor {
  int dim;     // C
  int tokens;  // per vector: 1 or 2
  int stride;  // floats from one token, or one pair, to the next; a multiple of kLanes
  int floats() const { return kChunk / tokens * stride; }
};

TNT_INLINE TokenMajor token_major(int dim) {
  const int single = (dim + kLanes - 1) / kLanes * kLanes;
#if defined(TNT_SIMD_AVX512)
  const int pair = (2 * dim + kLanes - 1) / kLanes * kLanes;
  if (pair < 2 * single) return {dim, 2, pair};
#endif
  return {dim, 1, single};
}

// Channels past dim become zeros.
inline void to_token_major(const TokenMajor& shape, const float* tile, float* out) {
  const int block = kLanes / shape.tokens;
  for (int t = 0; t < kChunk; t += kLanes) {
    for (int c = 0; c < shape.dim; c += block) {
      const auto row = [&](int i) {
        return c + i < shape.dim ? load(tile + (c + i) * kChunk + t) : zero();
      };
      float* at = out + t / shape.tokens * shape.stride + c * shape.tokens;
#if defined(TNT_SIMD_AVX512)
      if (shape.tokens == 2) {
        Vec m[kLanes / 2];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) m[i] = row(i);
        transpose_pairs(m);
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) store(at + i * shape.stride, m[i]);
        continue;
      }
#endif
      Vec m[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) m[i] = row(i);
      transpose(m);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(at + i * shape.stride, m[i]);
    }
  }
}

template <int kTokens>
TNT_INLINE Vec splat_tokens(const float* g) {
#if defined(TNT_SIMD_AVX512)
  if constexpr (kTokens == 2) return splat_pair(g);
#endif
  return splat(*g);
}

// R rows n times Q vectors of dw.
template <int R, int Q, int kTokens>
TNT_INLINE void weight_grad_tile(const float* g, const float* a, int stride, float* dw) {
  Vec acc[R][Q] = {};
  for (int t = 0; t < kChunk; t += kTokens) {
    Vec a_t[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) a_t[q] = load(a + q * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec g_rt = splat_tokens<kTokens>(g + r * kChunk + t);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) acc[r][q] = fma(g_rt, a_t[q], acc[r][q]);
    }
    a += stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      float* at = dw + r * stride + q * kLanes;
      store(at, load(at) + acc[r][q]);
    }
  }
}

template <int Q, int kTokens>
inline void weight_grad_columns(const float* g, int num_rows, const float* a, int stride,
                                float* dw) {
  constexpr int R = kRegisters == 32 ? 8 : 4;
  int n = 0;
  for (; n + R <= num_rows; n += R) {
    weight_grad_tile<R, Q, kTokens>(g + n * kChunk, a, stride, dw + int64_t{n} * stride);
  }
  for (; n + 2 <= num_rows; n += 2) {
    weight_grad_tile<2, Q, kTokens>(g + n * kChunk, a, stride, dw + int64_t{n} * stride);
  }
  if (n < num_rows) {
    weight_grad_tile<1, Q, kTokens>(g + n * kChunk, a, stride, dw + int64_t{n} * stride);
  }
}

template <int kTokens>
TNT_INLINE void weight_grad_tokens(const float* g, int num_rows, const float* a, int stride,
                                   float* dw) {
  int left = stride / kLanes;
  while (left > 0) {
    // 4 vectors are taken as 2 + 2, so that no narrow column is left over
    const int vecs = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
    if (vecs == 3) weight_grad_columns<3, kTokens>(g, num_rows, a, stride, dw);
    if (vecs == 2) weight_grad_columns<2, kTokens>(g, num_rows, a, stride, dw);
    if (vecs == 1) weight_grad_columns<1, kTokens>(g, num_rows, a, stride, dw);
    a += vecs * kLanes;
    dw += vecs * kLanes;
    left -= vecs;
  }
}

// dw[n * shape.stride + ..] += the chunk's sum, for the rows n of g, which are rows of a tile.
TNT_INLINE void add_weight_grad(const TokenMajor& shape, const float* g, int num_rows,
                                const float* a, float* dw) {
#if defined(TNT_SIMD_AVX512)
  if (shape.tokens == 2) return weight_grad_tokens<2>(g, num_rows, a, shape.stride, dw);
#endif
  weight_grad_tokens<1>(g, num_rows, a, shape.stride, dw);
}

// db[n * kLanes + lane] += sum over tokens, lane by lane.
inline void add_bias_grad(const float* g, int num_rows, float* db) {
  for (int n = 0; n < num_rows; ++n) {
    Vec sum = load(g + n * kChunk);
    for (int t = kLanes; t < kChunk; t += kLanes) sum = sum + load(g + n * kChunk + t);
    store(db + n * kLanes, load(db + n * kLanes) + sum);
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
