// What the inner-block kernels of every instruction set are given: plain pointers, no torch.
#pragma once

#include "cpu/types.h"

namespace tnt_kernels::cpu {

// All float32 and contiguous; null for a bias that is absent and for the half that is not computed.
struct InnerWeights {
  const float *norm1_weight, *norm1_bias;  // (C)
  const float *qk_weight, *qk_bias;        // (2C, C), (2C)
  const float *v_weight, *v_bias;          // (C, C), (C)
  const float *proj_weight, *proj_bias;    // (C, C), (C)
  const float *norm2_weight, *norm2_bias;  // (C)
  const float *fc1_weight, *fc1_bias;      // (H, C), (H)
  const float *fc2_weight, *fc2_bias;      // (C, H), (C)
};

// One call of inner_attention (Eq. 6), inner_mlp (Eq. 7), inner_block (both), or their backward.
// Activations are (P, S, C), contiguous, of type dtype.
struct InnerCall {
  bool has_attention, has_mlp;
  DType dtype;
  int64_t num_patches;  // P
  int num_tokens;       // S
  int dim;              // C
  int hidden_dim;       // H
  int num_heads;
  float eps;
  InnerWeights weights;
  const float *drop_path_attn, *drop_path_mlp;  // (P) factors of the branches, or null

  const void* x;   // the input of the first half
  void* mid;       // forward: Eq. 6's output if it is to be kept, else null; backward: not null
                   // when both halves are there
  void* out;       // forward only
  const void* dy;  // backward only
  void* dx;        // backward only; null if not wanted
  bool need_dw;    // backward only
};

// Work is cut into chunks of 64 tokens, which are 64 / S patches; the last may be shorter.
constexpr int kChunkTokens = 64;

constexpr int64_t num_chunks(const InnerCall& call) {
  return (call.num_patches * call.num_tokens + kChunkTokens - 1) / kChunkTokens;
}

// The chunks [begin, end), which one thread computes.
struct InnerSlice {
  int64_t begin, end;
  const float* packed;  // by pack()
  float* scratch;       // scratch_floats(), this thread's own
  float* dw_partial;    // backward with need_dw: dw_partial_floats(), zeros at first
};

// One pass over all chunks. Every buffer is aligned to 64 bytes.
struct InnerPass {
  bool (*supports)(const InnerCall&);
  int64_t (*packed_floats)(const InnerCall&);
  void (*pack)(const InnerCall&, float* packed);  // weights, in the order the pass reads them
  int64_t (*scratch_floats)(const InnerCall&);
  void (*run)(const InnerCall&, const InnerSlice&);
};

struct InnerKernels {
  InnerPass forward;
  InnerPass bfloat16_forward = {};  // preferred where it supports a call; nulls if there is none
  InnerPass backward;
  int64_t (*dw_partial_floats)(const InnerCall&);
  // Sums the slices' partial gradients in order and writes dw: the gradients of all weights in the
  // order of InnerWeights, absent ones included. norm: 2 C doubles of scratch.
  void (*finish_dw)(const InnerCall&, float* partials, int64_t num_partials, double* norm,
                    float* dw);
};

}  // namespace tnt_kernels::cpu
