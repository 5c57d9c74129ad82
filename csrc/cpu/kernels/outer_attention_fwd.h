// O = softmax(scale Q K^T) V, Eqs. 1-2 for the outer transformer. One thread per head: its K,
// transposed, and its V are copied to scratch, then strips of queries pass through scores, softmax
// and the product with V without leaving the cache.
#pragma once

#include "cpu/kernels/outer_attention_tile.h"

namespace tnt_kernels::cpu::TNT_ISA {

struct OuterForwardScratch {
  float *k_rows, *k_columns, *v, *q, *scores, *out, *mask, *zeros;

  static int64_t lay_out(const Head& head, float* base, OuterForwardScratch* scratch) {
    float* p = base;
    auto take = [&p](int64_t floats) {
      float* taken = p;
      p += (floats + 15) / 16 * 16;
      return taken;
    };
    const OuterForwardScratch s = {take(head.keys * head.width),
                                   take(head.keys * head.width),
                                   take(head.keys * head.width),
                                   take(kStrip * head.width),
                                   take(kStrip * head.keys),
                                   take(kStrip * head.width),
                                   take(head.keys),
                                   take(head.width)};
    if (scratch != nullptr) *scratch = s;
    return p - base;
  }
};

inline int64_t outer_forward_scratch(const OuterAttention& call) {
  return OuterForwardScratch::lay_out(Head(call, 0), nullptr, nullptr);
}

template <class T>
inline void outer_forward_heads(const OuterAttention& call, int64_t first, int64_t last,
                                float* base) {
  OuterForwardScratch s;
  OuterForwardScratch::lay_out(Head(call, 0), base, &s);
  for (int64_t index = first; index < last; ++index) {
    const Head head(call, index / call.parts);
    const int64_t part = index % call.parts;
    const int64_t begin = head.num_tokens * part / call.parts;
    const int64_t end = head.num_tokens * (part + 1) / call.parts;
    const T* q = static_cast<const T*>(call.qkv) + head.qkv_first;
    const T *k = q + head.qkv_part, *v = k + head.qkv_part;
    T* out = static_cast<T*>(call.out) + head.out_first;
    copy_rows(k, head.qkv_row, head.num_tokens, head, call.scale * kLog2E, s.k_rows);
    transpose_rows(head, s.k_rows, s.k_columns);
    copy_rows(v, head.qkv_row, head.num_tokens, head, 1.0f, s.v);
    fill_mask(head, s.mask);
    for (int64_t i = 0; i < head.width; ++i) s.zeros[i] = 0.0f;
    for (int64_t row = begin; row < end; row += kStrip) {
      const int64_t rows = smaller(kStrip, end - row);
      copy_rows(q + row * head.qkv_row, head.qkv_row, rows, head, 1.0f, s.q);
      multiply(rows, head.keys, head.dim,
               {s.q, head.width, 1, s.k_columns, head.keys, s.scores, head.keys, s.mask, 0});
      float inverse[kStrip];
      for (int64_t i = 0; i < rows; ++i) {
        inverse[i] = exponentials(s.scores + i * head.keys, head.keys);
      }
      multiply(rows, head.width, head.num_tokens,
               {s.scores, head.keys, 1, s.v, head.width, s.out, head.width, s.zeros, 0});
      for (int64_t i = 0; i < rows; ++i) {
        write_rows(s.out + i * head.width, 1, head, inverse[i], out + (row + i) * head.out_row,
                   head.out_row);
      }
    }
  }
}

inline void outer_forward(const OuterAttention& call, int64_t first, int64_t last, float* base) {
  const FlushDenormals flush;
  switch (call.dtype) {
    case DType::kFloat32:
      return outer_forward_heads<float>(call, first, last, base);
    case DType::kBFloat16:
      return outer_forward_heads<BFloat16>(call, first, last, base);
    case DType::kFloat16:
      return outer_forward_heads<Float16>(call, first, last, base);
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
