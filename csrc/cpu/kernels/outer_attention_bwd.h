// Backward of O = softmax(scale Q K^T) V from Q, K, V and dO alone: the scores are computed again.
//
//   dV = P^T dO;  dP = dO V^T;  dS = P (dP - sum over keys of P dP);  dQ = scale dS K;
//   dK = scale dS^T Q
//
// One thread per head, strips of queries as in forward; dK and dV are summed over the strips in
// scratch, in a fixed order.
#pragma once

#include "cpu/kernels/outer_attention_fwd.h"
#include "cpu/kernels/outer_attention_tile.h"

namespace tnt_kernels::cpu::TNT_ISA {

struct OuterBackwardScratch {
  float *k, *k_columns, *v, *v_columns, *q, *dy, *p, *ds, *dq, *dk, *dv, *mask, *zeros;

  static int64_t lay_out(const Head& head, float* base, OuterBackwardScratch* scratch) {
    float* next = base;
    auto take = [&next](int64_t floats) {
      float* taken = next;
      next += (floats + 15) / 16 * 16;
      return taken;
    };
    const int64_t matrix = head.keys * head.width, strip = kStrip * head.keys;
    const OuterBackwardScratch s = {take(matrix),
                                    take(matrix),
                                    take(matrix),
                                    take(matrix),
                                    take(matrix),
                                    take(matrix),
                                    take(strip),
                                    take(strip),
                                    take(kStrip * head.width),
                                    take(matrix),
                                    take(matrix),
                                    take(head.keys),
                                    take(head.keys + head.width)};
    if (scratch != nullptr) *scratch = s;
    return next - base;
  }
};

inline int64_t outer_backward_scratch(const OuterAttention& call) {
  return OuterBackwardScratch::lay_out(Head(call, 0), nullptr, nullptr);
}

// P and dP of one query, both unfinished, to P and dS.
TNT_INLINE void score_gradients(float* p, float* dp, int64_t keys) {
  const Vec inverse = splat(exponentials(p, keys));
  Vec total = zero();
  for (int64_t i = 0; i < keys; i += kLanes) {
    const Vec x = load(p + i) * inverse;
    store(p + i, x);
    total = fma(x, load(dp + i), total);
  }
  const Vec mean = splat(sum(total));
  for (int64_t i = 0; i < keys; i += kLanes) store(dp + i, load(p + i) * (load(dp + i) - mean));
}

template <class T>
inline void outer_backward_heads(const OuterAttention& call, int64_t first, int64_t last,
                                 float* base) {
  OuterBackwardScratch s;
  OuterBackwardScratch::lay_out(Head(call, 0), base, &s);
  for (int64_t index = first; index < last; ++index) {
    const Head head(call, index);
    const int64_t tokens = head.num_tokens, keys = head.keys, width = head.width;
    const T* q = static_cast<const T*>(call.qkv) + head.qkv_first;
    const T *k = q + head.qkv_part, *v = k + head.qkv_part;
    const T* dy = static_cast<const T*>(call.dy) + head.out_first;
    T* dq = static_cast<T*>(call.out) + head.qkv_first;
    T *dk = dq + head.qkv_part, *dv = dk + head.qkv_part;
    copy_rows(q, head.qkv_row, tokens, head, 1.0f, s.q);
    copy_rows(k, head.qkv_row, tokens, head, call.scale * kLog2E, s.k);
    copy_rows(v, head.qkv_row, tokens, head, 1.0f, s.v);
    copy_rows(dy, head.out_row, tokens, head, 1.0f, s.dy);
    transpose_rows(head, s.k, s.k_columns);
    transpose_rows(head, s.v, s.v_columns);
    fill_mask(head, s.mask);
    for (int64_t i = 0; i < keys + width; ++i) s.zeros[i] = 0.0f;
    for (int64_t i = 0; i < keys * width; ++i) s.dk[i] = s.dv[i] = 0.0f;
    for (int64_t row = 0; row < tokens; row += kStrip) {
      const int64_t rows = smaller(kStrip, tokens - row);
      const float *q_rows = s.q + row * width, *dy_rows = s.dy + row * width;
      multiply(rows, keys, head.dim, {q_rows, width, 1, s.k_columns, keys, s.p, keys, s.mask, 0});
      multiply(rows, keys, head.dim,
               {dy_rows, width, 1, s.v_columns, keys, s.ds, keys, s.zeros, 0});
      for (int64_t i = 0; i < rows; ++i) score_gradients(s.p + i * keys, s.ds + i * keys, keys);
      multiply(rows, width, tokens, {s.ds, keys, 1, s.k, width, s.dq, width, s.zeros, 0});
      write_rows(s.dq, rows, head, 1.0f / kLog2E, dq + row * head.qkv_row, head.qkv_row);
      multiply(tokens, width, rows, {s.p, 1, keys, dy_rows, width, s.dv, width, s.dv, width});
      multiply(tokens, width, rows, {s.ds, 1, keys, q_rows, width, s.dk, width, s.dk, width});
    }
    write_rows(s.dk, tokens, head, call.scale, dk, head.qkv_row);
    write_rows(s.dv, tokens, head, 1.0f, dv, head.qkv_row);
  }
}

inline void outer_backward(const OuterAttention& call, int64_t first, int64_t last, float* base) {
  const FlushDenormals flush;
  switch (call.dtype) {
    case DType::kFloat32:
      return outer_backward_heads<float>(call, first, last, base);
    case DType::kBFloat16:
      return outer_backward_heads<BFloat16>(call, first, last, base);
    case DType::kFloat16:
      return outer_backward_heads<Float16>(call, first, last, base);
  }
}

inline bool takes_all(const OuterAttention&) { return true; }

inline OuterAttentionKernels outer_attention_kernels() {
  return {{takes_all, outer_forward_scratch, outer_forward},
          {takes_all, outer_backward_scratch, outer_backward},
          {},
          {}};
}

}  // namespace tnt_kernels::cpu::TNT_ISA
