// What the glue and the kernels of outer_attention agree on: plain data only.
#pragma once

#include <stdint.h>

#include "cpu/types.h"

namespace tnt_kernels::cpu {

// O = softmax(scale Q K^T) V for every image and head, or its backward.
//
// qkv is (B, N, 3, heads, head_dim) and contiguous: q, k and v of a token lie beside each other.
struct OuterAttention {
  const void* qkv;
  const void* dy;  // (B, N, heads, head_dim); backward only
  void* out;       // (B, N, heads, head_dim); backward: dqkv, like qkv
  DType dtype;
  int64_t num_tokens, num_heads, head_dim;
  int64_t parts;  // ranges into which the queries of a head are cut; backward: 1
  float scale;
};

// Each pass computes [first, last) of all B * heads * parts; scratch is aligned to 64 bytes.
struct OuterAttentionPass {
  bool (*supports)(const OuterAttention&);
  int64_t (*scratch_floats)(const OuterAttention&);
  void (*run)(const OuterAttention&, int64_t first, int64_t last, float* scratch);
};

struct OuterAttentionKernels {
  OuterAttentionPass forward, backward;
  // preferred where they support a call; nulls if there are none
  OuterAttentionPass bfloat16_forward, bfloat16_backward;
};

}  // namespace tnt_kernels::cpu
