// What the kernels of the inner block are given: plain data, for host and device.
#pragma once

#include "cuda/weight_view.h"

namespace tnt_kernels::cuda {

constexpr int kHiddenPerDim = 4;  // the MLP's hidden width is 4 C

struct PackParams {
  WeightView norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight, proj_bias;
  WeightView norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
  bool has_attention, has_mlp;  // whose weights are there
  uint32_t* packed;             // Config::kBufferWords
};

struct ForwardParams {
  const void* x;                // (P, S, C)
  void* mid;                    // Eq. 6's result, or null
  void* out;                    // (P, S, C)
  const uint32_t* weights;      // packed
  const float* drop_path_attn;  // (P) or null
  const float* drop_path_mlp;   // (P) or null
  int64_t num_patches;          // P
  float eps;
  bool has_attention, has_mlp;  // both: the whole block
  PackParams unpacked;          // the weights that were packed
};

}  // namespace tnt_kernels::cuda
