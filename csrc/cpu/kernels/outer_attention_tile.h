// What forward and backward of the outer attention share. The matrices of one head fit in the
// second-level cache; they are copied there as floats, once, and multiplied in tiles.
#pragma once

#include "cpu/kernels/outer_attention.h"
#include "cpu/simd.h"

namespace tnt_kernels::cpu::TNT_ISA {

constexpr int kSumRows = 6;  // a tile of sums: rows, and vectors in a row
constexpr int kSumVecs = kRegisters == 32 ? 4 : 2;
constexpr int64_t kSumSteps = 64;  // so many rows of b, a tile wide, stay in the first-level cache
constexpr int64_t kStrip = 24;     // queries whose scores are held at a time

// c(i, j) = init(i, j) + sum_k a(i, k) b(k, j). Strides are in floats; a's are free, so that a may
// be read transposed. Columns come in whole vectors.
struct Product {
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  const float* init;
  int64_t init_stride;  // 0: one row for all
};

template <int R, int Q>
__attribute__((noinline)) void sum_tile(const Product& p, int64_t num_k) {
  Vec sum[R][Q];
  const float* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = p.a + r * p.a_row;
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) sum[r][q] = load(p.init + r * p.init_stride + q * kLanes);
  }
  const float* b = p.b;
  const int64_t a_step = p.a_step, b_stride = p.b_stride;
  for (int64_t k = 0; k < num_k; ++k) {
    Vec b_k[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) b_k[q] = load(b + q * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec a_rk = splat(*a[r]);
      a[r] += a_step;
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) sum[r][q] = fma(a_rk, b_k[q], sum[r][q]);
    }
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) store(p.c + r * p.c_stride + q * kLanes, sum[r][q]);
  }
}

template <int Q>
TNT_INLINE void sum_rows(int64_t rows, const Product& p, int64_t num_k) {
  switch (rows) {
    case 1:
      return sum_tile<1, Q>(p, num_k);
    case 2:
      return sum_tile<2, Q>(p, num_k);
    case 3:
      return sum_tile<3, Q>(p, num_k);
    case 4:
      return sum_tile<4, Q>(p, num_k);
    case 5:
      return sum_tile<5, Q>(p, num_k);
    default:
      return sum_tile<6, Q>(p, num_k);
  }
}

TNT_INLINE void sum_tile(int64_t rows, int64_t vecs, const Product& p, int64_t num_k) {
  switch (vecs) {
    case 1:
      return sum_rows<1>(rows, p, num_k);
    case 2:
      return sum_rows<2>(rows, p, num_k);
#if defined(TNT_SIMD_AVX512)
    case 3:
      return sum_rows<3>(rows, p, num_k);
    default:
      return sum_rows<4>(rows, p, num_k);
#endif
  }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The product for all rows, columns and steps.
inline void multiply(int64_t rows, int64_t columns, int64_t num_k, const Product& p) {
  for (int64_t k = 0; k < num_k; k += kSumSteps) {
    for (int64_t j = 0; j < columns; j += kSumVecs * kLanes) {
      const int64_t vecs = smaller(kSumVecs, (columns - j) / kLanes);
      for (int64_t i = 0; i < rows; i += kSumRows) {
        float* c = p.c + i * p.c_stride + j;
        const float* init = p.init + i * p.init_stride + j;
        const Product tile = {p.a + i * p.a_row + k * p.a_step,
                              p.a_row,
                              p.a_step,
                              p.b + k * p.b_stride + j,
                              p.b_stride,
                              c,
                              p.c_stride,
                              k == 0 ? init : c,
                              k == 0 ? p.init_stride : p.c_stride};
        sum_tile(smaller(kSumRows, rows - i), vecs, tile, smaller(kSumSteps, num_k - k));
      }
    }
  }
}

constexpr int64_t whole_vecs(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// One head of one image.
struct Head {
  int64_t num_tokens, dim;
  int64_t keys, width;       // both in whole vectors
  int64_t qkv_row, out_row;  // elements from token to token
  int64_t qkv_part;          // elements from q to k and from k to v
  int64_t qkv_first, out_first;

  Head(const OuterAttention& call, int64_t index) {
    const int64_t image = index / call.num_heads, head = index % call.num_heads;
    num_tokens = call.num_tokens;
    dim = call.head_dim;
    keys = whole_vecs(num_tokens);
    width = whole_vecs(dim);
    out_row = qkv_part = call.num_heads * dim;
    qkv_row = 3 * out_row;
    out_first = image * num_tokens * out_row + head * dim;
    qkv_first = image * num_tokens * qkv_row + head * dim;
  }
};

// `count` rows of a tensor as floats times factor, each padded with zeros to `width`.
template <class T>
inline void copy_rows(const T* source, int64_t source_row, int64_t count, const Head& head,
                      float factor, float* rows) {
  const Vec f = splat(factor);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < head.width; j += kLanes) {
      const int64_t left = head.dim - j;
      const T* p = source + i * source_row + j;
      const Vec x = left >= kLanes ? load(p) : load_n(p, static_cast<int>(left));
      store(rows + i * head.width + j, x * f);
    }
  }
}

template <class T>
inline void write_rows(const float* rows, int64_t count, const Head& head, float factor, T* target,
                       int64_t target_row) {
  const Vec f = splat(factor);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < head.dim; j += kLanes) {
      const int64_t left = head.dim - j;
      const Vec x = load(rows + i * head.width + j) * f;
      T* p = target + i * target_row + j;
      if (left >= kLanes) {
        store(p, x);
      } else {
        store_n(p, x, static_cast<int>(left));
      }
    }
  }
}

// rows (num_tokens, width) to columns (width, keys); the padding becomes zeros.
inline void transpose_rows(const Head& head, float* rows, float* columns) {
  for (int64_t i = head.num_tokens * head.width; i < head.keys * head.width; ++i) rows[i] = 0.0f;
  for (int64_t token = 0; token < head.keys; token += kLanes) {
    for (int64_t j = 0; j < head.width; j += 4) {
      transpose_4_channels(rows + token * head.width + j, head.width,
                           columns + j * head.keys + token, head.keys);
    }
  }
}

// Adding this row masks the keys beyond the last token.
inline void fill_mask(const Head& head, float* mask) {
  for (int64_t i = 0; i < head.keys; ++i) mask[i] = i < head.num_tokens ? 0.0f : -__builtin_inff();
}

// Scores in powers of two to their exponentials, less the largest; returns 1 / sum of them.
TNT_INLINE float exponentials(float* scores, int64_t keys) {
  Vec top = load(scores);
  for (int64_t i = kLanes; i < keys; i += kLanes) top = max(top, load(scores + i));
  top = splat(largest(top));
  Vec total = zero();
  for (int64_t i = 0; i < keys; i += kLanes) {
    const Vec e = exp2_nonpositive(load(scores + i) - top);
    store(scores + i, e);
    total = total + e;
  }
  return 1.0f / sum(total);
}

}  // namespace tnt_kernels::cpu::TNT_ISA
